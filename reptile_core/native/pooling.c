/* 2 x 2 maxima with stride 2 and "same" padding: the last window of an odd side is cut off.
 * Images are (n, height, width, channels), contiguous. */

#include "tiles.h"

enum { WINDOW = 2 };

static inline long shorter(long a, long b)
{
    return a < b ? a : b;
}

void max_pool(const Real *x, Real *out, long n, long height, long width, long channels)
{
    for (long b = 0; b < n; b++, x += height * width * channels)
        for (long row = 0; row < height; row += WINDOW)
            for (long column = 0; column < width; column += WINDOW, out += channels)
                for (long r = row; r < shorter(row + WINDOW, height); r++)
                    for (long q = column; q < shorter(column + WINDOW, width); q++) {
                        const Real *pixel = x + (r * width + q) * channels;
                        const int first = r == row && q == column;
                        for (long c = 0; c < channels; c++) out[c] = first || pixel[c] > out[c] ? pixel[c] : out[c];
                    }
}

/* The gradient in the pixels of a window, rows x columns of them at x; as torch's amax has it, equal maxima share it. */
INLINE void window_backward(const int rows, const int columns, const Real *restrict g, const Real *restrict x,
                            const Real *restrict out, Real *restrict g_x, long width, long channels)
{
    for (long c = 0; c < channels; c++) {
        Real count = 0;
        for (int r = 0; r < rows; r++)
            for (int q = 0; q < columns; q++) count += x[(r * width + q) * channels + c] == out[c];
        const Real share = g[c] / count;
        for (int r = 0; r < rows; r++)
            for (int q = 0; q < columns; q++) {
                const long at = (r * width + q) * channels + c;
                g_x[at] = x[at] == out[c] ? share : 0;
            }
    }
}

void max_pool_backward(const Real *g, const Real *x, const Real *out, Real *g_x, long n, long height, long width,
                       long channels)
{
    for (long b = 0; b < n; b++)
        for (long row = 0; row < height; row += WINDOW)
            for (long column = 0; column < width; column += WINDOW, out += channels, g += channels) {
                const long at = ((b * height + row) * width + column) * channels;
                const int low = row + 1 < height, right = column + 1 < width;
                if (low && right) window_backward(2, 2, g, x + at, out, g_x + at, width, channels);
                else if (low) window_backward(2, 1, g, x + at, out, g_x + at, width, channels);
                else if (right) window_backward(1, 2, g, x + at, out, g_x + at, width, channels);
                else window_backward(1, 1, g, x + at, out, g_x + at, width, channels);
            }
}

/* Of x's coefficients `change` of any order those of the maxima; equal maxima share here too. */
void max_pool_taylor(const Real *x, const Real *out, const Real *change, Real *changed, long n, long height,
                     long width, long channels)
{
    for (long b = 0; b < n; b++, x += height * width * channels, change += height * width * channels)
        for (long row = 0; row < height; row += WINDOW)
            for (long column = 0; column < width; column += WINDOW, out += channels, changed += channels)
                for (long c = 0; c < channels; c++) {
                    Real sum = 0, count = 0;
                    for (long r = row; r < shorter(row + WINDOW, height); r++)
                        for (long q = column; q < shorter(column + WINDOW, width); q++) {
                            const long at = (r * width + q) * channels + c;
                            const int is_largest = x[at] == out[c];
                            sum += is_largest ? change[at] : 0, count += is_largest;
                        }
                    changed[c] = sum / count;
                }
}
