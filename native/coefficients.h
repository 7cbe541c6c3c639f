// From options and a step number to the numbers of the rule: src/adamas/coefficients.py, line for
// line, in binary64. Only + - * / and sqrt, so that every machine gets the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace adamas {

enum class BiasCorrection { paper, first_step, none };
enum class Decay { l2, decoupled, fully_decoupled, cautious, corrected };
enum class EpsPlace { corrected, uncorrected, inside };

// Whether a decay goes by the greatest learning rate of the run.
inline bool knows_greatest(Decay decay) {
    return decay == Decay::fully_decoupled || decay == Decay::corrected;
}

// adamas.options.Options, without the learning rate, which comes with each step.
struct Options {
    bool has_mean = false;
    bool has_square = false;
    double beta1 = 0;
    double beta2 = 0;
    double eps = 0;
    EpsPlace eps_place = EpsPlace::corrected;
    double eps_root = 0;
    double weight_decay = 0;
    Decay decay = Decay::l2;
    double lr_max = 1;
    BiasCorrection bias_correction = BiasCorrection::paper;
    bool amsgrad = false;
    bool nesterov = false;
    bool rectify = false;
    bool maximize = false;
};

// adamas.checks.MOST_STEPS: up to here binary64 counts one by one.
constexpr double most_steps = 9007199254740992.0;

// Whether a number can be that of the steps made so far, with another to come.
inline bool is_count(double done) {
    return 0 <= done && done < most_steps && done == std::floor(done);
}

// The exponent is at least 0. Taken as a number without a sign, whatever it is ends after 64 turns.
inline double one_minus_power(double beta, std::uint64_t exponent) {
    double total = 0.0;
    double q = 1.0 - beta;
    for (;;) {
        if (exponent & 1) {
            total = total + q * (1.0 - total);
        }
        exponent >>= 1;
        if (exponent == 0) {
            return total;
        }
        q = q * (2.0 - q);
    }
}

inline double clip_factor(double clip_norm, double norm) {
    return norm <= clip_norm ? 1.0 : clip_norm / norm;
}

// `norm` is of what rule.h calls unsmoothed, over all `count` elements of the whole tensor.
inline double update_factor(double clip_update, double norm, std::int64_t count, double root) {
    if (count == 0 || root == 0) {
        return 1.0;
    }
    return clip_factor(clip_update, norm / std::sqrt(static_cast<double>(count)));
}

// The numbers of an update that is so much smaller.
inline Numbers<double> shortened(const Numbers<double>& numbers, double factor) {
    Numbers<double> result = numbers;
    result.decay = numbers.decay * factor;
    result.opposed = numbers.opposed * factor;
    result.step = numbers.step * factor;
    return result;
}

inline double unbias(const Options& options, double beta, std::int64_t step) {
    if (options.bias_correction == BiasCorrection::none) {
        return 1.0;
    }
    bool grows = options.bias_correction == BiasCorrection::paper;
    return one_minus_power(beta, grows ? static_cast<std::uint64_t>(step) : 1);
}

// r_t of Liu et al. (2020), or 0 where rho_t is not above 5.
inline double rectification(double beta, std::uint64_t step) {
    double weights = 0.0, numbers = 0.0;
    double q = 1.0 - beta, of_numbers = 1.0 - beta, power = beta, terms = 1.0;
    for (;;) {
        if (step & 1) {
            numbers = of_numbers + power * (terms * weights + numbers);
            weights = q + power * weights;
        }
        step >>= 1;
        if (step == 0) {
            break;
        }
        of_numbers = of_numbers + power * (terms * q + of_numbers);
        q = q + power * q;
        power = q <= 0.5 ? 1.0 - q : power * power;
        terms = terms + terms;
    }
    double length = 2.0 * (numbers / weights) - 1.0;
    if (!(length > 5.0)) {
        return 0.0;
    }
    double longest = 2.0 / (1.0 - beta) - 1.0;
    double now = (length - 4.0) * (length - 2.0), last = (longest - 4.0) * (longest - 2.0);
    return std::sqrt(now * longest / (last * length));
}

inline Numbers<double> at_step(const Options& options, std::int64_t step, double lr,
                               double grad_scale) {
    double l2 = 0, decay = 0;
    switch (options.decay) {
        case Decay::l2:
            l2 = options.weight_decay;
            break;
        case Decay::decoupled:
        case Decay::cautious:
            decay = lr * options.weight_decay;
            break;
        case Decay::fully_decoupled:
            decay = options.weight_decay * (lr / options.lr_max);
            break;
        case Decay::corrected:
            decay = lr * (options.weight_decay * (lr / options.lr_max));
            break;
    }
    double keep1 = 0, take1 = 1, from_m = 1, from_g = 0;
    if (options.has_mean) {
        double now = unbias(options, options.beta1, step);
        keep1 = options.beta1;
        take1 = 1.0 - options.beta1;
        from_m = 1.0 / now;
        if (options.nesterov) {
            from_m = options.beta1 / unbias(options, options.beta1, step + 1);
            from_g = (1.0 - options.beta1) / now;
        }
    }
    double keep2 = 0, take2 = 1, unbias2 = 1;
    if (options.has_square) {
        unbias2 = unbias(options, options.beta2, step);
        keep2 = options.beta2;
        take2 = 1.0 - options.beta2;
    }
    double root = 1.0 / std::sqrt(unbias2);
    double inside = options.eps_root, eps = options.eps;
    if (options.eps_place == EpsPlace::uncorrected) {
        eps = eps * root;
    } else if (options.eps_place == EpsPlace::inside) {
        inside = inside + eps;
        eps = 0.0;
    }
    double rate = lr;
    if (options.rectify) {
        double rectified = rectification(options.beta2, static_cast<std::uint64_t>(step));
        if (rectified == 0.0) {
            root = 0.0;
            eps = 1.0;
        } else {
            rate = lr * rectified;
        }
    }
    // In one piece: clearing them all first takes longer than what is computed here.
    return {.grad_scale = options.maximize ? -grad_scale : grad_scale,
            .l2 = l2,
            .decay = decay,
            .opposed = options.decay == Decay::cautious ? 0.0 : decay,
            .keep1 = keep1,
            .take1 = take1,
            .keep2 = keep2,
            .take2 = take2,
            .from_m = from_m,
            .from_g = from_g,
            .root = root,
            .inner = inside * unbias2,
            .eps = eps,
            .step = rate};
}

}  // namespace adamas
