#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <mutex>
#include <utility>

#include "exact_sum.h"
#include "parallel.h"
#include "splitmix.h"

namespace adamas {
namespace {

constexpr std::int64_t chunk_size = 16 * tile_size;

// How long one core works on an element at least, in picoseconds: in cache, on fast machines.
constexpr std::int64_t picoseconds_to_read = 100;

std::int64_t picoseconds_to_step(const Layout& layout) {
    std::int64_t plain = layout.square ? 350 : 150;
    if (layout.dtype == DType::float64) {
        return 2 * plain;
    }
    return layout.is_small() || is_half(layout.dtype) ? 2 * plain : plain;
}

void add(Report& report, Report& other) {
    add(report.gradient, other.gradient);
    add(report.parameter, other.parameter);
    add(report.update, other.update);
    if (other.largest > report.largest || std::isnan(other.largest)) {
        report.largest = other.largest;
    }
    report.moved += other.moved;
}

TensorStatistics described(Report& report, std::int64_t count) {
    TensorStatistics result{};
    result.gradient_norm = norm_of(report.gradient);
    result.parameter_norm = norm_of(report.parameter);
    result.update_norm = norm_of(report.update);
    bool is_nan = std::isnan(report.largest);
    result.largest_update = is_nan ? std::numeric_limits<double>::quiet_NaN() : report.largest;
    result.nonfinite = nonfinite_of(report.gradient);
    result.unmoved =
        count > 0 ? static_cast<double>(count - report.moved) / static_cast<double>(count) : 0.0;
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

void Tensor::put(std::vector<Runs> given) {
    std::int64_t end = arrays.offset + count;
    if (given.size() == 1 && given.front().length >= end) {
        arrays.offset += given.front().start;
    } else if (!given.empty()) {
        // Strips are of whole blocks, and may draw for more elements than there are.
        given.push_back({end, 0, block_size, 0});
        given.push_back({end + block_size, 0, 0, 0});
        runs = std::move(given);
        arrays.runs = runs.data();
    }
}

Plan::Plan(std::vector<Tensor> tensors, Phase phase, std::size_t rows)
    : tensors_(std::move(tensors)), phase_(phase), sums_(rows) {
    for (Tensor& tensor : tensors_) {
        if (!phase_.averages) {
            tensor.arrays.ema = nullptr;  // what is there stays as it is
        }
    }
    cut();
}

void Plan::cut() {
    elements_ = 0;
    std::int64_t picoseconds = 0;
    present_ = 0;
    chunks_.clear();
    parts_.clear();
    groups_.clear();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (!tensors_[i].is_present) {
            continue;
        }
        std::int64_t count = tensors_[i].count;
        elements_ += count;
        picoseconds += count * picoseconds_to_step(tensors_[i].layout);
        for (std::int64_t first = 0; first < count; first += chunk_size) {
            std::int64_t last = std::min(first + chunk_size, count);
            if (groups_.empty() || groups_.back().room < last - first) {
                groups_.push_back({chunks_.size(), chunks_.size(), chunk_size});
            }
            chunks_.push_back({i, first, last, present_, chunks_.size()});
            parts_.push_back({&tensors_[i].arrays, first, last});
            ++groups_.back().last;
            groups_.back().room -= last - first;
        }
        ++present_;
    }
    nanoseconds_ = picoseconds / 1000;
    for (std::size_t i = chunks_.size(); i-- > 0;) {
        const Tensor& tensor = tensors_[chunks_[i].tensor];
        if (is_plain(tensor.layout, tensor.arrays)) {
            bool goes_on = i + 1 < chunks_.size() &&
                           tensors_[chunks_[i + 1].tensor].layout.dtype == tensor.layout.dtype;
            chunks_[i].alike = goes_on ? std::max(chunks_[i + 1].alike, i + 1) : i + 1;
        }
    }
}

Plan::Chunk Plan::joined(std::size_t& at, std::size_t end) const {
    Chunk chunk = chunks_[at];
    while (++at < end && chunks_[at].tensor == chunk.tensor) {
        chunk.last = chunks_[at].last;
    }
    return chunk;
}

template <class Body>
void Plan::for_each_span(Body body) const {
    auto run = [&](std::int64_t first, std::int64_t last) {
        body(groups_[first].first, groups_[last - 1].last);
    };
    for_each_run(static_cast<std::int64_t>(groups_.size()), nanoseconds_, run);
}

void Plan::read() {
    if (!phase_.reads_first()) {
        return;
    }
    const Kernels& kernels = *target().kernels;
    for (Squares& sum : sums_) {
        reset(sum);
    }
    nonfinite_.assign(present_, 0);
    std::mutex guard;
    // By itself this may not be worth another thread. But who is woken for it is there for the
    // rest.
    for_each_span([&](std::size_t at, std::size_t end) {
        Squares own;
        while (at < end) {
            Chunk chunk = joined(at, end);
            const Tensor& tensor = tensors_[chunk.tensor];
            std::int64_t before = nonfinite_of(own);
            kernels.add_squares(tensor.layout.dtype, tensor.arrays.g, chunk.first, chunk.last, own);
            std::int64_t found = nonfinite_of(own) - before;
            bool is_last = at == end || tensors_[chunks_[at].tensor].row != tensor.row;
            if (is_last || found > 0) {
                std::lock_guard<std::mutex> lock(guard);
                nonfinite_[chunk.place] += found;
                add(sums_[tensor.row], own);
                reset(own);
            }
        }
    });
}

Outcome Plan::read_outcome(double loss_scale) {
    for (std::size_t i = 1; i < sums_.size(); ++i) {
        add(sums_[0], sums_[i]);
    }
    Squares& total = sums_[0];
    Outcome outcome;
    outcome.norm = norm_of(total) / loss_scale;
    outcome.nonfinite = nonfinite_;
    outcome.spike = phase_.skips_spikes && spikes_.is_spike(outcome.norm, phase_.skip_above);
    bool is_good = nonfinite_of(total) == 0 || phase_.on_nonfinite == OnNonfinite::propagate;
    outcome.applied = is_good && !outcome.spike;
    return outcome;
}

Outcome Plan::judge(std::vector<StepNumbers>& numbers, double loss_scale, double factor) {
    Outcome outcome;
    if (phase_.reads_first()) {
        outcome = read_outcome(loss_scale);
    }
    if (phase_.clips) {
        factor *= clip_factor(phase_.clip_norm, outcome.norm);
    }
    scale(numbers, loss_scale, factor);
    return outcome;
}

void Plan::measure(const std::vector<StepNumbers>& numbers) {
    const Kernels& kernels = *target().kernels;
    updates_.resize(present_);
    for (Squares& sum : updates_) {
        reset(sum);
    }
    std::mutex guard;
    for_each_span([&](std::size_t at, std::size_t end) {
        while (at < end) {
            Chunk chunk = joined(at, end);
            const Tensor& tensor = tensors_[chunk.tensor];
            const Numbers<double>& own = numbers[tensor.numbers].rule;
            if (own.root == 0 || !tensor.layout.square) {
                continue;
            }
            auto add_to = [&](Squares& sum) {
                kernels.add_updates(tensor.layout, tensor.arrays, own, chunk.first, chunk.last,
                                    sum);
            };
            Squares& sum = updates_[chunk.place];
            if (chunk.last - chunk.first == tensor.count) {  // nobody else adds to it
                add_to(sum);
                continue;
            }
            Squares part;
            add_to(part);
            std::lock_guard<std::mutex> lock(guard);
            add(sum, part);
        }
    });
}

void Plan::shorten(const std::vector<StepNumbers>& numbers) {
    shortened_.clear();
    shortened_.reserve(present_);
    for (const Tensor& tensor : tensors_) {
        if (!tensor.is_present) {
            continue;
        }
        const StepNumbers& own = numbers[tensor.numbers];
        double norm = norm_of(updates_[shortened_.size()]);
        double factor =
            update_factor(phase_.clip_update, norm, tensor.whole_count(), own.rule.root);
        shortened_.push_back(own);
        shortened_.back().rule = shortened(own.rule, factor);
    }
}

std::vector<std::int64_t> Plan::update_rows() {
    std::vector<std::int64_t> rows;
    for (Squares& sum : updates_) {
        carry(sum);
        rows.insert(rows.end(), sum.row, sum.row + row_width);
    }
    return rows;
}

void Plan::apply(const std::vector<StepNumbers>& numbers, Outcome& outcome) {
    if (outcome.applied) {
        if (phase_.clips_updates) {
            shorten(numbers);
        }
        if (phase_.statistics) {
            sweep_described(numbers, outcome);
        } else {
            sweep(numbers, nullptr);
        }
    }
    if (phase_.skips_spikes) {
        spikes_.enter(outcome.norm, outcome.spike);
    }
}

void add_squares(DType dtype, const void* x, std::int64_t count, std::int64_t* row) {
    const Kernels& kernels = *target().kernels;
    Squares sum;
    std::mutex guard;
    auto run = [&](std::int64_t begin, std::int64_t end) {
        Squares own;
        kernels.add_squares(dtype, x, begin * chunk_size, std::min(end * chunk_size, count), own);
        std::lock_guard<std::mutex> lock(guard);
        add(sum, own);
    };
    std::int64_t chunks = (count + chunk_size - 1) / chunk_size;
    for_each_run(chunks, count * picoseconds_to_read / 1000, run);
    carry(sum);
    add_row(sum, row);
    carry(sum);
    std::copy_n(sum.row, row_width, row);
}

StepNumbers numbers_at(const Options& options, const Phase& phase, std::int64_t step, double lr) {
    bool copies = step == 1;  // the first step's average is the parameter
    return {at_step(options, step, lr, 1.0), copies ? 0.0 : phase.ema,
            copies ? 1.0 : 1.0 - phase.ema, static_cast<std::uint64_t>(step)};
}

std::size_t Plan::count_alike(std::size_t at, std::size_t end) const {
    std::size_t numbers = tensors_[chunks_[at].tensor].numbers, last = at;
    end = std::min(end, chunks_[at].alike);
    while (last < end && tensors_[chunks_[last].tensor].numbers == numbers) {
        ++last;
    }
    return last - at;
}

void Plan::sweep(const std::vector<StepNumbers>& numbers, Report* reports) {
    const Kernels& kernels = *target().kernels;
    std::mutex guard;
    for_each_span([&](std::size_t at, std::size_t end) {
        while (at < end) {
            bool in_one_call = reports == nullptr && !phase_.clips_updates;
            if (std::size_t count = in_one_call ? count_alike(at, end) : 0; count > 0) {
                const Tensor& tensor = tensors_[chunks_[at].tensor];
                kernels.sweep_parts(tensor.layout.dtype, numbers[tensor.numbers], &parts_[at],
                                    static_cast<std::int64_t>(count));
                at += count;
                continue;
            }
            Chunk chunk = joined(at, end);
            const Tensor& tensor = tensors_[chunk.tensor];
            const StepNumbers& own =
                phase_.clips_updates ? shortened_[chunk.place] : numbers[tensor.numbers];
            Key key = key_of(phase_.seed, own.number, tensor.number);
            if (reports == nullptr) {
                kernels.sweep(tensor.layout, tensor.arrays, own, key, chunk.first, chunk.last,
                              nullptr);
                continue;
            }
            Report report;
            kernels.sweep(tensor.layout, tensor.arrays, own, key, chunk.first, chunk.last, &report);
            std::lock_guard<std::mutex> lock(guard);
            add(reports[chunk.place], report);
        }
    });
}

void Plan::sweep_described(const std::vector<StepNumbers>& numbers, Outcome& outcome) {
    // All memory is taken before the step: it must not fail after it.
    std::vector<Report> reports(present_);
    outcome.statistics.reserve(present_);
    outcome.sums.resize(keeps_sums_ ? present_ * 3 * row_width : 0);
    sweep(numbers, reports.data());
    Report* own = reports.data();
    std::int64_t* sums = outcome.sums.data();
    for (const Tensor& tensor : tensors_) {
        if (!tensor.is_present) {
            continue;
        }
        outcome.statistics.push_back(described(*own, tensor.count));
        for (Squares* each : {&own->gradient, &own->parameter, &own->update}) {
            if (keeps_sums_) {
                carry(*each);
                sums = std::copy_n(each->row, row_width, sums);
            }
        }
        ++own;
    }
}

}  // namespace adamas
