// The finalizer of SplitMix64: Steele, Lea and Flood 2014.
#pragma once

#include <cstdint>

namespace adamas {

constexpr std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// What is added before it.
constexpr std::uint64_t golden_ratio = 0x9e3779b97f4a7c15u;

}  // namespace adamas
