#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "parallel.h"
#include "splitmix.h"

namespace adamas {
namespace {

constexpr std::int64_t chunk_tiles = 64;
constexpr std::int64_t chunk_size = chunk_tiles * tile_size;

// Below this a second thread takes longer to wake than it saves.
constexpr std::int64_t least_threaded = 96 * tile_size;

constexpr std::int64_t tiles_of(std::int64_t count) { return (count + tile_size - 1) / tile_size; }

// The root of a sum of squares, taken again at another scale where it left float64's range.
template <class SumAt>
double norm_from(SumAt sum_at) {
    double total = sum_at(0);
    if (std::isnan(total) ||
        (smallest_sum <= total && total <= std::numeric_limits<double>::max())) {
        return std::sqrt(total);
    }
    int which = std::isinf(total) ? 1 : 2;
    return std::sqrt(sum_at(which)) / scales[which];
}

double norm_of(const TileReport* reports, std::int64_t tiles, Squares TileReport::* quantity) {
    return norm_from([&](int scale) {
        ExactSum sum;
        for (std::int64_t i = 0; i < tiles; ++i) {
            sum.add((reports[i].*quantity).at[scale]);
        }
        return sum.value();
    });
}

TensorStatistics described(const TileReport* reports, std::int64_t count) {
    std::int64_t tiles = tiles_of(count);
    TensorStatistics result{};
    std::int64_t moved = 0;
    for (std::int64_t i = 0; i < tiles; ++i) {
        double largest = reports[i].largest;
        if (largest > result.largest_update || std::isnan(largest)) {
            result.largest_update = largest;
        }
        if (std::isnan(result.largest_update)) {
            result.largest_update = std::numeric_limits<double>::quiet_NaN();
        }
        result.nonfinite += reports[i].nonfinite;
        moved += reports[i].moved;
    }
    result.gradient_norm = norm_of(reports, tiles, &TileReport::gradient);
    result.parameter_norm = norm_of(reports, tiles, &TileReport::parameter);
    result.update_norm = norm_of(reports, tiles, &TileReport::update);
    result.unmoved =
        count > 0 ? static_cast<double>(count - moved) / static_cast<double>(count) : 0.0;
    return result;
}

}  // namespace

Key key_of(std::uint64_t seed, std::uint64_t step, std::uint64_t tensor) {
    std::uint64_t z = 0;
    for (std::uint64_t number : {seed, step, tensor}) {
        z = mixed(z + number + golden_ratio);
    }
    return {static_cast<std::uint32_t>(z), static_cast<std::uint32_t>(z >> 32)};
}

Plan::Plan(std::vector<Tensor> tensors, Phase phase) : tensors_(std::move(tensors)), phase_(phase) {
    for (Tensor& tensor : tensors_) {
        if (!phase_.averages) {
            tensor.arrays.ema = nullptr;  // what is there stays as it is
        }
    }
    cut();
}

void Plan::cut() {
    elements_ = tiles_ = 0;
    chunks_.clear();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        std::int64_t count = tensors_[i].is_present ? tensors_[i].count : 0;
        elements_ += count;
        for (std::int64_t first = 0; first < count; first += chunk_size) {
            chunks_.push_back(
                {i, first, std::min(first + chunk_size, count), tiles_ + first / tile_size});
        }
        tiles_ += tiles_of(count);
    }
}

template <class Body>
void Plan::for_each_chunk(Body body) const {
    auto at = [&](std::int64_t i) { body(chunks_[i], tensors_[chunks_[i].tensor]); };
    for_each(static_cast<std::int64_t>(chunks_.size()), elements_ >= least_threaded, at);
}

Outcome Plan::step(std::vector<StepNumbers>& numbers, double loss_scale, double factor) {
    Outcome outcome;
    if (phase_.reads_first()) {
        read_gradients(outcome);
        outcome.norm /= loss_scale;
        if (!outcome.applied) {
            return outcome;
        }
    }
    if (phase_.clips) {
        factor *= clip_factor(phase_.clip_norm, outcome.norm);
    }
    for (StepNumbers& each : numbers) {
        each.rule.grad_scale = each.rule.grad_scale / loss_scale * factor;
    }
    if (phase_.statistics) {
        outcome.statistics = sweep_described(numbers);
    } else {
        sweep(numbers, nullptr);
    }
    return outcome;
}

StepNumbers numbers_at(const Options& options, const Phase& phase, std::int64_t step, double lr) {
    bool copies = step == 1;  // the first step's average is the parameter
    return {at_step(options, step, lr, 1.0), copies ? 0.0 : phase.ema,
            copies ? 1.0 : 1.0 - phase.ema, static_cast<std::uint64_t>(step)};
}

void Plan::read_gradients(Outcome& outcome) {
    outcome.nonfinite.assign(tensors_.size(), 0);
    outcome.norm = norm_from([&](int which) {
        return sum_of_squares(scales[which], which == 0 ? &outcome.nonfinite : nullptr).value();
    });
    std::size_t kept = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (tensors_[i].is_present) {
            outcome.nonfinite[kept++] = outcome.nonfinite[i];
        }
    }
    outcome.nonfinite.resize(kept);
    bool finite = std::all_of(outcome.nonfinite.begin(), outcome.nonfinite.end(),
                              [](std::int64_t count) { return count == 0; });
    outcome.applied = finite || phase_.on_nonfinite == OnNonfinite::propagate;
}

ExactSum Plan::sum_of_squares(double scale, std::vector<std::int64_t>* nonfinite) {
    const Kernels& kernels = *target().kernels;
    ExactSum total;
    std::mutex guard;
    for_each_chunk([&](const Chunk& chunk, const Tensor& tensor) {
        double sums[chunk_tiles];
        std::int64_t found = kernels.tile_sums(tensor.layout.dtype, tensor.arrays.g, scale,
                                               chunk.first, chunk.last, sums);
        std::int64_t tiles = tiles_of(chunk.last - chunk.first);
        std::lock_guard<std::mutex> lock(guard);
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            total.add(sums[tile]);
        }
        if (nonfinite != nullptr) {
            (*nonfinite)[chunk.tensor] += found;
        }
    });
    return total;
}

void Plan::sweep(const std::vector<StepNumbers>& numbers, TileReport* reports) {
    const Kernels& kernels = *target().kernels;
    for_each_chunk([&](const Chunk& chunk, const Tensor& tensor) {
        const StepNumbers& own = numbers[tensor.numbers];
        Key key = key_of(phase_.seed, own.number, tensor.number);
        kernels.sweep(tensor.layout, tensor.arrays, own, key, chunk.first, chunk.last,
                      reports == nullptr ? nullptr : reports + chunk.tile);
    });
}

std::vector<TensorStatistics> Plan::sweep_described(const std::vector<StepNumbers>& numbers) {
    // All memory is taken before the step: it must not fail after it.
    std::vector<TileReport> reports(tiles_);
    std::vector<TensorStatistics> result;
    result.reserve(tensors_.size());
    sweep(numbers, reports.data());
    const TileReport* own = reports.data();
    for (const Tensor& tensor : tensors_) {
        if (tensor.is_present) {
            result.push_back(described(own, tensor.count));
            own += tiles_of(tensor.count);
        }
    }
    return result;
}

}  // namespace adamas
