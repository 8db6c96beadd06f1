/* What a block of a convolutional network does beside its convolution, in as few passes over memory as there can be.
 * Everything is contiguous float32. */

#include <math.h>
#include <string.h>

enum { BLOCK = 64 }; /* rows summed in float before they go into a double: keeps the sums exact to float32's last digits */

/* sums[c] = sum over rows of a[row, c] where keep[row, c] > 0 (everywhere if keep is NULL), and with[c] the same of
 * a[row, c] * b[row, c] if b is there. `partial` holds two rows. */
static inline __attribute__((always_inline)) void column_sums(const float *a, const float *keep, const float *b,
                                                              double *sums, double *with, float *restrict partial,
                                                              long rows, long channels)
{
    float *restrict products = partial + channels;
    for (long c = 0; c < channels; c++) sums[c] = 0;
    if (b)
        for (long c = 0; c < channels; c++) with[c] = 0;
    for (long first = 0; first < rows; first += BLOCK) {
        const long end = first + BLOCK < rows ? first + BLOCK : rows;
        memset(partial, 0, 2 * channels * sizeof(float));
        for (long row = first; row < end; row++) {
            const float *a_row = a + row * channels, *keep_row = keep ? keep + row * channels : 0;
            const float *b_row = b ? b + row * channels : 0;
            for (long c = 0; c < channels; c++) {
                const float value = keep && !(keep_row[c] > 0) ? 0 : a_row[c];
                partial[c] += value;
                if (b) products[c] += value * b_row[c];
            }
        }
        for (long c = 0; c < channels; c++) sums[c] += partial[c];
        if (b)
            for (long c = 0; c < channels; c++) with[c] += products[c];
    }
}

/* out = max(0, scale * normalized + shift) with normalized = (x - mean) * rstd over the rows of each lane.
 * `scratch`, here and below, holds 8 rows of floats. */
void normalize_relu(const float *x, const float *scale, const float *shift, float *normalized, float *rstd, float *out,
                    void *scratch, double eps, long lanes, long rows, long channels)
{
    double *sums = scratch, *squares = sums + channels;
    float *mean = (float *)(squares + channels), *partial = mean + channels;
    for (long lane = 0; lane < lanes; lane++) {
        column_sums(x, 0, 0, sums, 0, partial, rows, channels);
        for (long c = 0; c < channels; c++) mean[c] = (float)(sums[c] / rows);
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) normalized[row * channels + c] = x[row * channels + c] - mean[c];
        column_sums(normalized, 0, normalized, sums, squares, partial, rows, channels);
        for (long c = 0; c < channels; c++) rstd[c] = (float)(1 / sqrt(squares[c] / rows + eps));
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) {
                const float value = normalized[row * channels + c] * rstd[c], affine = value * scale[c] + shift[c];
                normalized[row * channels + c] = value;
                out[row * channels + c] = affine > 0 ? affine : 0;
            }
        x += rows * channels, normalized += rows * channels, out += rows * channels;
        scale += channels, shift += channels, rstd += channels;
    }
}

/* The gradients of the above in x, scale and shift, from that in out. */
void normalize_relu_backward(const float *g, const float *out, const float *normalized, const float *rstd,
                             const float *scale, float *g_x, float *g_scale, float *g_shift, void *scratch, long lanes,
                             long rows, long channels)
{
    double *sums = scratch, *with = sums + channels;
    float *partial = (float *)(with + channels);
    for (long lane = 0; lane < lanes; lane++) {
        column_sums(g, out, normalized, sums, with, partial, rows, channels);
        float *restrict factor = partial, *restrict along = partial + channels;
        for (long c = 0; c < channels; c++) {
            g_shift[c] = (float)sums[c], g_scale[c] = (float)with[c];
            factor[c] = scale[c] * rstd[c], along[c] = (float)(with[c] / rows), sums[c] /= rows;
        }
        float *restrict constant = along + channels;
        for (long c = 0; c < channels; c++) constant[c] = (float)sums[c];
        for (long row = 0; row < rows; row++)
            for (long c = 0; c < channels; c++) {
                const long at = row * channels + c;
                const float value = out[at] > 0 ? g[at] : 0;
                g_x[at] = factor[c] * (value - constant[c] - normalized[at] * along[c]);
            }
        g += rows * channels, out += rows * channels, normalized += rows * channels, g_x += rows * channels;
        rstd += channels, scale += channels, g_scale += channels, g_shift += channels;
    }
}
