/* What a block of a convolutional network does beside its convolution, in as few passes over memory as there can be.
 * Everything is contiguous. */

#include <string.h>
#include <tgmath.h>

#include "real.h"
#include "sums.h"

INLINE void normalize_with(const int relu, const Real *x, const Real *scale, const Real *shift, Real *normalized,
                           Real *rstd, Real *out, void *scratch, double eps, long lanes, long rows, long channels)
{
    double *sums = scratch, *squares = sums + channels;
    Real *mean = (Real *)(squares + channels), *partial = mean + channels;
    for (long lane = 0; lane < lanes; lane++) {
        column_sums(x, 0, 0, sums, 0, partial, rows, channels);
        for (long c = 0; c < channels; c++) mean[c] = (Real)(sums[c] / rows);
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) normalized[row * channels + c] = x[row * channels + c] - mean[c];
        column_sums(normalized, 0, normalized, sums, squares, partial, rows, channels);
        for (long c = 0; c < channels; c++) rstd[c] = (Real)(1 / sqrt(squares[c] / rows + eps));
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) {
                const Real value = normalized[row * channels + c] * rstd[c], affine = value * scale[c] + shift[c];
                normalized[row * channels + c] = value;
                out[row * channels + c] = !relu || affine > 0 ? affine : 0;
            }
        x += rows * channels, normalized += rows * channels, out += rows * channels;
        scale += channels, shift += channels, rstd += channels;
    }
}

/* out = scale * normalized + shift with normalized = (x - mean) * rstd over the rows of each lane.
 * `scratch`, here and below, holds 8 rows of numbers. */
void normalize(const Real *x, const Real *scale, const Real *shift, Real *normalized, Real *rstd, Real *out,
               void *scratch, double eps, long lanes, long rows, long channels)
{
    normalize_with(0, x, scale, shift, normalized, rstd, out, scratch, eps, lanes, rows, channels);
}

/* out = max(0, scale * normalized + shift). */
void normalize_relu(const Real *x, const Real *scale, const Real *shift, Real *normalized, Real *rstd, Real *out,
                    void *scratch, double eps, long lanes, long rows, long channels)
{
    normalize_with(1, x, scale, shift, normalized, rstd, out, scratch, eps, lanes, rows, channels);
}

INLINE void normalize_backward_with(const int relu, const Real *g, const Real *out, const Real *normalized,
                                    const Real *rstd, const Real *scale, Real *g_x, Real *g_scale, Real *g_shift,
                                    void *scratch, long lanes, long rows, long channels)
{
    double *sums = scratch, *with = sums + channels;
    Real *partial = (Real *)(with + channels);
    for (long lane = 0; lane < lanes; lane++) {
        column_sums(g, relu ? out : 0, normalized, sums, with, partial, rows, channels);
        Real *restrict factor = partial, *restrict along = partial + channels;
        for (long c = 0; c < channels; c++) {
            g_shift[c] = (Real)sums[c], g_scale[c] = (Real)with[c];
            factor[c] = scale[c] * rstd[c], along[c] = (Real)(with[c] / rows), sums[c] /= rows;
        }
        Real *restrict constant = along + channels;
        for (long c = 0; c < channels; c++) constant[c] = (Real)sums[c];
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) {
                const long at = row * channels + c;
                const Real value = !relu || out[at] > 0 ? g[at] : 0;
                g_x[at] = factor[c] * (value - constant[c] - normalized[at] * along[c]);
            }
        g += rows * channels, out += rows * channels, normalized += rows * channels, g_x += rows * channels;
        rstd += channels, scale += channels, g_scale += channels, g_shift += channels;
    }
}

/* The gradients of `normalize` in x, scale and shift, from that in out. */
void normalize_backward(const Real *g, const Real *normalized, const Real *rstd, const Real *scale, Real *g_x,
                        Real *g_scale, Real *g_shift, void *scratch, long lanes, long rows, long channels)
{
    normalize_backward_with(0, g, 0, normalized, rstd, scale, g_x, g_scale, g_shift, scratch, lanes, rows, channels);
}

/* The gradients of `normalize_relu`. */
void normalize_relu_backward(const Real *g, const Real *out, const Real *normalized, const Real *rstd,
                             const Real *scale, Real *g_x, Real *g_scale, Real *g_shift, void *scratch, long lanes,
                             long rows, long channels)
{
    normalize_backward_with(1, g, out, normalized, rstd, scale, g_x, g_scale, g_shift, scratch, lanes, rows, channels);
}
