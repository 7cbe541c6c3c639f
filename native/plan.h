// A step over fixed tensors: what src/adamas/engines/reference.py does, in two passes at most.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coefficients.h"
#include "dispatch.h"
#include "exact_sum.h"
#include "spikes.h"

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
    std::uint64_t seed = 0;
    bool skips_spikes = false;
    double skip_above = 0;
    bool clips_updates = false;
    double clip_update = 0;

    bool reads_first() const {
        return clips || on_nonfinite != OnNonfinite::propagate || skips_spikes;
    }
};

// What every step looks at comes first, and is in one line of the cache.
struct alignas(64) Tensor {
    bool is_present = true;  // whether it has a gradient; see Plan::cut
    std::size_t numbers;     // which of the step's numbers are its own
    Arrays arrays;           // g is set before each step
    Layout layout;
    std::int64_t count;
    std::uint64_t number = 0;  // of the tensor among all, for random bits
    std::size_t row = 0;       // of the sum that its gradient is counted in
    std::vector<Runs> runs{};  // what `arrays` has the address of; empty where it has none
    std::int64_t whole = -1;   // how many elements the whole tensor has, of which this is a part
    // Which of the rows that processes add up its update is counted in; none where -1.
    std::int64_t update_row = -1;

    std::int64_t whole_count() const { return whole < 0 ? count : whole; }

    // Says where the elements of a part stand in the whole tensor; nowhere else where empty.
    void put(std::vector<Runs> given);
};

// adamas.codecs.key_of.
Key key_of(std::uint64_t seed, std::uint64_t step, std::uint64_t tensor);

struct TensorStatistics {
    double gradient_norm, parameter_norm, update_norm, largest_update;
    std::int64_t nonfinite;
    double unmoved;
};

struct Outcome {
    bool applied = true;
    bool spike = false;                        // left out, as the norm leaps
    double norm = 0;                           // where the phase reads first
    std::vector<std::int64_t> nonfinite;       // the same
    std::vector<TensorStatistics> statistics;  // where asked for and applied
    // The sums that these are of, three rows of src/adamas/digits.py each, where they are kept.
    std::vector<std::int64_t> sums;
};

// Adds the squares of all elements to a row of src/adamas/digits.py, and carries its digits.
void add_squares(DType dtype, const void* x, std::int64_t count, std::int64_t* row);

// The numbers of one step of a tensor with these options.
StepNumbers numbers_at(const Options& options, const Phase& phase, std::int64_t step, double lr);

// Undoes what gradients are multiplied by, and multiplies them by a factor.
inline void scale(std::vector<StepNumbers>& numbers, double loss_scale, double factor) {
    for (StepNumbers& each : numbers) {
        each.rule.grad_scale = each.rule.grad_scale / loss_scale * factor;
    }
}

class Plan {
public:
    Plan() = default;
    // Gradients are summed up in `rows` sums.
    Plan(std::vector<Tensor> tensors, Phase phase, std::size_t rows = 1);

    std::vector<Tensor>& tensors() { return tensors_; }

    // Takes notice of which tensors are present: a step leaves out the others, and reports the
    // present ones alone.
    void cut();
    void clear() {
        tensors_.clear();
        cut();
    }

    const Phase& phase() const { return phase_; }
    void set_phase(const Phase& phase) { phase_ = phase; }

    // Judges norms by those of a window, where the phase skips spikes.
    void set_spikes(SpikeWindow spikes) { spikes_ = spikes; }

    // Reports the sums of statistics, too: of tensors that other processes have parts of.
    void keep_sums() { keeps_sums_ = true; }

    // Whether a step is long enough that others should run meanwhile.
    bool is_long() const { return elements_ >= 16 * tile_size; }

    // Reads the gradients, where the phase does so before a step; the gradient of every present
    // tensor must be set.
    void read();

    // Lets exchange(rows) add to what was read; `rows` are those of src/adamas/digits.py, one after
    // the other.
    template <class Exchange>
    void exchange(const Exchange& exchange) {
        std::vector<std::int64_t> rows;
        for (Squares& sum : sums_) {
            carry(sum);
            rows.insert(rows.end(), sum.row, sum.row + row_width);
        }
        exchange(rows);
        for (std::size_t i = 0; i < sums_.size(); ++i) {
            sums_[i] = {};
            add_row(sums_[i], rows.data() + i * row_width);
        }
    }

    // Concludes from gradients that were read, which are `loss_scale` times what they stand for,
    // whether a step is made. What undoes this, the clip factor and `factor` are put into
    // `numbers`.
    Outcome judge(std::vector<StepNumbers>& numbers, double loss_scale = 1.0, double factor = 1.0);

    // Takes sums of the updates of all present tensors.
    void measure(const std::vector<StepNumbers>& numbers);

    // Lets exchange(rows) add to these sums, of tensors that others have parts of: `count` rows.
    template <class Exchange>
    void exchange_updates(const Exchange& exchange, std::size_t count) {
        std::vector<std::int64_t> rows(count * row_width);
        auto for_each_shared = [&](auto body) {
            Squares* sum = updates_.data();
            for (const Tensor& tensor : tensors_) {
                if (tensor.is_present && tensor.update_row >= 0) {
                    body(*sum, rows.data() + tensor.update_row * row_width);
                }
                sum += tensor.is_present;
            }
        };
        for_each_shared([](Squares& sum, std::int64_t* row) {
            carry(sum);
            std::copy_n(sum.row, row_width, row);
        });
        exchange(rows);
        for_each_shared([](Squares& sum, const std::int64_t* row) {
            reset(sum);
            add_row(sum, row);
        });
    }

    // Makes a step as it was judged, of updates that were measured.
    void apply(const std::vector<StepNumbers>& numbers, Outcome& outcome);

    // The rows of these sums, one for each present tensor.
    std::vector<std::int64_t> update_rows();

private:
    // Some whole tiles of one tensor.
    struct Chunk {
        std::size_t tensor;
        std::int64_t first, last;
        std::size_t place;  // of its tensor among those that are present
        std::size_t alike;  // where those end that are plain as it is; at it where it is not
    };

    // The least that one thread takes at once: some small tensors, or one chunk of a large one.
    struct Group {
        std::size_t first, last;
        std::int64_t room;  // for more elements
    };

    // The chunk `at` with those of the same tensor that follow it before `end`; moves `at` on.
    Chunk joined(std::size_t& at, std::size_t end) const;
    // How many chunks from `at` on, before `end`, may be stepped in one call.
    std::size_t count_alike(std::size_t at, std::size_t end) const;
    // Calls body(at, end) for spans of all chunks, on several threads where that pays.
    template <class Body>
    void for_each_span(Body body) const;
    // Concludes from what was read.
    Outcome read_outcome(double loss_scale);
    // Takes what every tensor is stepped with, where the phase clips updates.
    void shorten(const std::vector<StepNumbers>& numbers);
    // Steps all chunks; `reports` are of all tensors that are present, or null where nothing is
    // recorded.
    void sweep(const std::vector<StepNumbers>& numbers, Report* reports);
    void sweep_described(const std::vector<StepNumbers>& numbers, Outcome& outcome);

    std::vector<Tensor> tensors_;
    Phase phase_;
    SpikeWindow spikes_;
    bool keeps_sums_ = false;
    std::int64_t elements_ = 0;
    std::int64_t nanoseconds_ = 0;  // that a step takes one thread at least
    std::size_t present_ = 0;       // how many tensors are present
    std::vector<Chunk> chunks_;
    std::vector<Part> parts_;  // which these are
    std::vector<Group> groups_;
    std::vector<Squares> sums_;            // of the gradients, as they were read
    std::vector<std::int64_t> nonfinite_;  // of each present tensor, as it was read
    // Of each present tensor, where updates are clipped: their sums, and the numbers of its step.
    std::vector<Squares> updates_;
    std::vector<StepNumbers> shortened_;
};

}  // namespace adamas
