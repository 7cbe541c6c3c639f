// How one tensor and its moments are stored: src/adamas/storage.py. The sweep, the plans and
// what converts Python's objects all read these tables, so a new form is a line of one of them, and
// its loops in codecs.h.
#pragma once

#include <cstdint>

#include "dlpack.h"

namespace adamas {

// A kind of number, as DLPack tells it.
struct Element {
    std::uint8_t code = 0, bits = 0;

    constexpr std::int64_t bytes() const { return bits / 8; }
    bool operator==(const Element&) const = default;
};

namespace elements {

constexpr Element float16{dlpack::float_code, 16}, float32{dlpack::float_code, 32},
    float64{dlpack::float_code, 64}, bfloat16{dlpack::bfloat_code, 16}, int8{dlpack::int_code, 8},
    int16{dlpack::int_code, 16}, int32{dlpack::int_code, 32}, uint8{dlpack::uint_code, 8}, none{};

}  // namespace elements

// What parameters and gradients are.
enum class DType { float32, float64, bfloat16, float16 };

constexpr Element dtypes[] = {elements::float32, elements::float64, elements::bfloat16,
                              elements::float16};

// Whether a dtype is decoded to float32 before the rule, and encoded after.
constexpr bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }

// How a moment is stored: src/adamas/codecs.py. Plain is the dtype of the arithmetic.
enum class Form { plain, bfloat16, compact, eight_bit };

// What codes of m and of v are in each form, and whether blocks of them share a header.
struct StoredAs {
    const char* name;
    Element mean, square;
    bool has_header;
};

constexpr StoredAs forms[] = {
    {"float32", elements::none, elements::none, false},
    {"bfloat16", elements::bfloat16, elements::bfloat16, false},
    {"compact", elements::uint8, elements::bfloat16, false},
    {"8bit", elements::int8, elements::uint8, true},
};

// Elements that share a header; tiles are whole blocks. The header has 16 bits, with no sign, but
// tensors of torch have them as int16, since it knows next to nothing of uint16.
constexpr std::int64_t block_size = 32;
constexpr Element header_element = elements::int16;

constexpr std::int64_t header_count(std::int64_t elements) {
    return (elements + block_size - 1) / block_size;
}

// Elements that one word of marks is of; tiles are whole words.
constexpr int marks_in_word = 32;
constexpr Element marks_element = elements::int32;

constexpr std::int64_t mark_count(std::int64_t elements) {
    return (elements + marks_in_word - 1) / marks_in_word;
}

// How parameters in half precision are rounded.
enum class Rounding { nearest, stochastic, remainder, remainder8 };

// What parameters in bfloat16 have besides in each, and whether it draws random bits.
struct RoundedAs {
    const char* name;
    Element remainder;
    bool draws;
};

constexpr RoundedAs roundings[] = {
    {"nearest", elements::none, false},
    {"stochastic", elements::none, true},
    {"remainder", elements::int16, false},
    {"remainder8", elements::int8, true},
};

constexpr const Element& row_of(DType dtype) { return dtypes[static_cast<int>(dtype)]; }
constexpr const StoredAs& row_of(Form form) { return forms[static_cast<int>(form)]; }
constexpr const RoundedAs& row_of(Rounding rounding) {
    return roundings[static_cast<int>(rounding)];
}

// Which moments one tensor keeps, and how all of it is stored.
struct Layout {
    DType dtype;  // of parameter and gradient
    bool mean, square, largest;
    Form mean_form = Form::plain, square_form = Form::plain;
    bool stochastic = true;                 // rounding to small forms
    int top = 0;                            // the exponent that codes of m are counted from
    Rounding rounding = Rounding::nearest;  // of a parameter in half precision

    // What each entry of the state consists of.
    constexpr Element number() const {
        return dtype == DType::float64 ? elements::float64 : elements::float32;
    }
    constexpr Element mean_element() const { return or_number(row_of(mean_form).mean); }
    constexpr Element square_element() const { return or_number(row_of(square_form).square); }
    constexpr Element remainder_element() const { return row_of(rounding).remainder; }

    constexpr bool is_small() const {
        return mean_form != Form::plain || square_form != Form::plain;
    }
    constexpr bool has_header() const {
        return (mean && row_of(mean_form).has_header) || (square && row_of(square_form).has_header);
    }
    constexpr bool keeps_remainder() const {
        return dtype == DType::bfloat16 && remainder_element() != elements::none;
    }
    constexpr bool draws() const {
        return (is_small() && stochastic) || (is_half(dtype) && row_of(rounding).draws);
    }

private:
    constexpr Element or_number(Element code) const {
        return code == elements::none ? number() : code;
    }
};

}  // namespace adamas
