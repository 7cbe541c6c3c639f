// Arrays that are not contiguous are stepped as contiguous twins: copied before, and back after.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "buffer.h"

namespace adamas {

class StridedTwin {
public:
    // `view` must be held while the twin lives.
    explicit StridedTwin(const Py_buffer& view) : view_(view), memory_(new char[view.len]) {}

    void* memory() const { return memory_.get(); }
    void read() const { copy<true>(); }
    void write() const { copy<false>(); }

private:
    template <bool reads>
    void copy() const {
        switch (view_.itemsize) {
            case 2:
                return copy_words<reads, std::uint16_t>();
            case 4:
                return copy_words<reads, std::uint32_t>();
            default:
                return copy_words<reads, std::uint64_t>();
        }
    }

    // Plane after plane, of the last two axes.
    template <bool reads, class Word>
    void copy_words() const {
        const Py_buffer& view = view_;
        if (view.len == 0) {
            return;
        }
        int outer = std::max(view.ndim - 2, 0);
        Py_ssize_t columns = view.shape[view.ndim - 1];
        Py_ssize_t rows = view.ndim > 1 ? view.shape[view.ndim - 2] : 1;
        Py_ssize_t along_row = view.strides[view.ndim - 1];
        Py_ssize_t along_column = view.ndim > 1 ? view.strides[view.ndim - 2] : 0;
        char* strided = static_cast<char*>(view.buf);
        auto* dense = reinterpret_cast<Word*>(memory_.get());
        std::vector<Py_ssize_t> index(outer, 0);
        for (;;) {
            copy_plane<reads>(strided, along_column, along_row, dense, rows, columns);
            dense += rows * columns;
            int axis = outer - 1;
            for (; axis >= 0; --axis) {
                strided += view.strides[axis];
                if (++index[axis] < view.shape[axis]) {
                    break;
                }
                strided -= view.strides[axis] * view.shape[axis];
                index[axis] = 0;
            }
            if (axis < 0) {
                return;
            }
        }
    }

    // Row by row; in squares where columns are denser in memory, so that lines of the cache are
    // used whole.
    template <bool reads, class Word>
    static void copy_plane(char* strided, Py_ssize_t along_column, Py_ssize_t along_row,
                           Word* dense, Py_ssize_t rows, Py_ssize_t columns) {
        bool in_squares = rows > 1 && std::abs(along_column) < std::abs(along_row);
        Py_ssize_t high = in_squares ? 16 : 1, wide = in_squares ? 16 : columns;
        for (Py_ssize_t top = 0; top < rows; top += high) {
            for (Py_ssize_t left = 0; left < columns; left += wide) {
                Py_ssize_t length = std::min(wide, columns - left);
                for (Py_ssize_t i = top; i < std::min(top + high, rows); ++i) {
                    copy_row<reads>(strided + i * along_column + left * along_row, along_row,
                                    dense + i * columns + left, length);
                }
            }
        }
    }

    template <bool reads, class Word>
    static void copy_row(char* strided, Py_ssize_t stride, Word* dense, Py_ssize_t length) {
        for (Py_ssize_t j = 0; j < length; ++j) {
            if constexpr (reads) {
                std::memcpy(dense + j, strided + j * stride, sizeof(Word));
            } else {
                std::memcpy(strided + j * stride, dense + j, sizeof(Word));
            }
        }
    }

    Py_buffer view_;
    std::unique_ptr<char[]> memory_;
};

}  // namespace adamas
