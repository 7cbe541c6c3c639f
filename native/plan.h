// A step over fixed tensors: what src/adamas/engines/reference.py does, in two passes at most.
#pragma once

#include <cstdint>
#include <vector>

#include "coefficients.h"
#include "dispatch.h"
#include "exact_sum.h"

namespace adamas {

enum class OnNonfinite { propagate, skip, raise };

// adamas.options.Phase.
struct Phase {
    bool clips = false;
    double clip_norm = 0;
    OnNonfinite on_nonfinite = OnNonfinite::propagate;
    bool averages = false;
    double ema = 0;
    bool statistics = false;

    bool reads_first() const { return clips || on_nonfinite != OnNonfinite::propagate; }
};

struct Tensor {
    Layout layout;
    Arrays arrays;  // g is set before each step
    std::int64_t count;
    std::size_t group;
};

struct TensorStatistics {
    double gradient_norm, parameter_norm, update_norm, largest_update;
    std::int64_t nonfinite;
    double unmoved;
};

struct Outcome {
    bool applied = true;
    double norm = 0;                           // where the phase reads first
    std::vector<std::int64_t> nonfinite;       // the same
    std::vector<TensorStatistics> statistics;  // where asked for and applied
};

class Plan {
public:
    Plan(std::vector<Options> groups, std::vector<Tensor> tensors, Phase phase);

    std::vector<Tensor>& tensors() { return tensors_; }
    std::size_t group_count() const { return groups_.size(); }
    const Phase& phase() const { return phase_; }

    // Whether a step is long enough that others should run meanwhile.
    bool is_long() const { return elements_ >= 16 * tile_size; }

    // Makes one step; every tensor's gradient must be set, and `rates` has one entry per group.
    Outcome step(std::int64_t number, const double* rates);

private:
    // A run of whole tiles of one tensor.
    struct Chunk {
        std::size_t tensor;
        std::int64_t first, last;
    };

    bool is_threaded() const;
    void number_groups(std::int64_t number, const double* rates, double grad_scale);
    void read_gradients(Outcome& outcome);
    ExactSum sum_of_squares(double scale, std::vector<std::int64_t>* nonfinite);
    void sweep();
    std::vector<TensorStatistics> sweep_recorded();

    std::vector<Options> groups_;
    std::vector<Tensor> tensors_;
    Phase phase_;
    std::int64_t elements_ = 0;
    std::vector<Chunk> chunks_;
    std::vector<StepNumbers> numbers_;  // of the step under way, for each group
};

}  // namespace adamas
