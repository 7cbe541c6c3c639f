// Steps that are left out since the norm of the gradients leaps: src/adamas/spikes.py.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace adamas {

// The norms of the last steps, in memory of somebody else: so many, written round and round, how
// many have entered, and how many steps were left out. Or none.
class SpikeWindow {
public:
    static constexpr std::int64_t extra = 2;

    SpikeWindow() = default;
    SpikeWindow(double* norms, std::int64_t size) : norms_(norms), size_(size) {}

    bool is_kept() const { return norms_ != nullptr; }

    // Whether a norm tells how large a gradient is.
    static bool is_judged(double norm) {
        return 0.0 < norm && norm < std::numeric_limits<double>::infinity();
    }

    // Whether a norm lies more than `above` standard deviations above the mean.
    bool is_spike(double norm, double above) const {
        auto n = static_cast<std::int64_t>(std::min(norms_[size_], static_cast<double>(size_)));
        if (!is_judged(norm) || n < size_ / 2) {
            return false;
        }
        auto count = static_cast<double>(n);
        double scale = reciprocal(*std::max_element(norms_, norms_ + n));
        std::vector<double> x(std::bit_ceil(static_cast<std::size_t>(size_)));
        std::vector<double> sums(x.size());
        for (std::int64_t i = 0; i < n; ++i) {
            x[i] = norms_[i] * scale;
        }
        double mean = sum(x, sums) / count;
        for (std::int64_t i = 0; i < n; ++i) {
            double deviation = x[i] - mean;
            x[i] = deviation * deviation;
        }
        double std = std::sqrt(sum(x, sums) / (count - 1.0));
        return norm * scale - mean > above * std;
    }

    // Lets a norm enter, once it is known whether its step was left out.
    void enter(double norm, bool left_out) const {
        if (is_judged(norm)) {
            norms_[static_cast<std::int64_t>(norms_[size_]) % size_] = norm;
            norms_[size_] += 1.0;
            norms_[size_ + 1] += left_out ? 1.0 : 0.0;
        }
    }

private:
    // The sum of 2^k numbers, by halving neighbours.
    static double sum(const std::vector<double>& x, std::vector<double>& sums) {
        std::copy(x.begin(), x.end(), sums.begin());
        for (std::size_t left = x.size() / 2; left > 0; left /= 2) {
            for (std::size_t i = 0; i < left; ++i) {
                sums[i] = sums[2 * i] + sums[2 * i + 1];
            }
        }
        return sums[0];
    }

    // The power of two that brings a number of the normal range to from 1 to 2; those at the ends
    // of the range are brought near it.
    static double reciprocal(double x) {
        std::int64_t exponent = std::bit_cast<std::int64_t>(x) >> 52;
        return std::bit_cast<double>((2046 - std::clamp<std::int64_t>(exponent, 1, 2045)) << 52);
    }

    double* norms_ = nullptr;
    std::int64_t size_ = 0;
};

}  // namespace adamas
