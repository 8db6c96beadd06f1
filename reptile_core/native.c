/* What a block of a convolutional network does beside its matrix products, in as few passes over memory as there can be.
 * Everything is contiguous float32. Compiled without contraction of a*b + c, and vectors run over channels, so that the
 * bits do not depend on the processor. */

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* Patches of 3 x 3 "same" convolutions and their transpose: images are (n, height, width, channels), patches
 * (n, out_height, out_width, 3, 3, channels). */

enum { KERNEL = 3 };

typedef struct {
    long n, height, width, channels, stride, out_height, out_width, before_rows, before_columns;
} Shape;

void patches(const float *x, float *out, const Shape *s)
{
    const long row = KERNEL * s->channels;
    for (long b = 0; b < s->n; b++)
        for (long o = 0; o < s->out_height; o++)
            for (long p = 0; p < s->out_width; p++)
                for (long i = 0; i < KERNEL; i++, out += row) {
                    const long r = o * s->stride + i - s->before_rows, first = p * s->stride - s->before_columns;
                    const long low = first < 0 ? -first : 0;
                    const long high = first + KERNEL > s->width ? s->width - first : KERNEL;
                    if (r < 0 || r >= s->height) {
                        memset(out, 0, row * sizeof(float));
                        continue;
                    }
                    const float *from = x + ((b * s->height + r) * s->width + first + low) * s->channels;
                    for (long c = 0; c < low * s->channels; c++) out[c] = 0;
                    memcpy(out + low * s->channels, from, (high - low) * s->channels * sizeof(float));
                    for (long c = high * s->channels; c < row; c++) out[c] = 0;
                }
}

/* Lists, for every input position of an axis, where its taps lie: offsets[position * KERNEL ...], in the order of
 * `taps`, as (output * output_stride + tap * tap_stride), and how many there are. */
static void list_taps(long *offsets, long *counts, long inputs, long outputs, long before, long stride,
                      const long *taps, long output_stride, long tap_stride)
{
    for (long at = 0; at < inputs; at++) {
        counts[at] = 0;
        for (long t = 0; t < KERNEL; t++) {
            const long shifted = at + before - taps[t];
            if (shifted < 0 || shifted % stride || shifted / stride >= outputs) continue;
            offsets[at * KERNEL + counts[at]++] = shifted / stride * output_stride + taps[t] * tap_stride;
        }
    }
}

/* Adds in the order of the tensor code in layers.py, first along rows and then along columns, so that both give the
 * same bits. `scratch` holds 4 * (height + width) longs and one pixel of floats after them. */
WIDE
void fold(const float *patch, float *x, long *scratch, const long *row_taps, const long *column_taps, const Shape *s)
{
    const long channels = s->channels, tap = channels, pixel = KERNEL * KERNEL * channels;
    long *row_counts = scratch, *row_offsets = row_counts + s->height;
    long *column_counts = row_offsets + KERNEL * s->height, *column_offsets = column_counts + s->width;
    float *restrict sum = (float *)(column_offsets + KERNEL * s->width);
    list_taps(row_offsets, row_counts, s->height, s->out_height, s->before_rows, s->stride, row_taps,
              s->out_width * pixel, KERNEL * tap);
    list_taps(column_offsets, column_counts, s->width, s->out_width, s->before_columns, s->stride, column_taps, pixel, tap);

    for (long b = 0; b < s->n; b++, patch += s->out_height * s->out_width * pixel)
        for (long r = 0; r < s->height; r++)
            for (long q = 0; q < s->width; q++, x += channels)
                for (long j = 0; j < column_counts[q]; j++) {
                    const float *column = patch + column_offsets[q * KERNEL + j];
                    const float *from = column + row_offsets[r * KERNEL];
                    if (row_counts[r] > 1) {
                        const float *next = column + row_offsets[r * KERNEL + 1];
                        for (long c = 0; c < channels; c++) sum[c] = from[c] + next[c];
                        if (row_counts[r] > 2) {
                            next = column + row_offsets[r * KERNEL + 2];
                            for (long c = 0; c < channels; c++) sum[c] += next[c];
                        }
                        from = sum;
                    }
                    if (j)
                        for (long c = 0; c < channels; c++) x[c] += from[c];
                    else
                        memcpy(x, from, channels * sizeof(float));
                }
}

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
WIDE
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
WIDE
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

/* out = max(0, x + shift), and its gradients: g_x where out > 0, its column sums for the shift. */
WIDE
void shift_relu(const float *x, const float *shift, float *out, long lanes, long rows, long channels)
{
    for (long lane = 0; lane < lanes; lane++, shift += channels)
        for (long row = 0; row < rows; row++, x += channels, out += channels)
            for (long c = 0; c < channels; c++) {
                const float value = x[c] + shift[c];
                out[c] = value > 0 ? value : 0;
            }
}

WIDE
void shift_relu_backward(const float *g, const float *out, float *g_x, float *g_shift, void *scratch, long lanes,
                         long rows, long channels)
{
    double *sums = scratch;
    float *partial = (float *)(sums + channels);
    for (long lane = 0; lane < lanes; lane++, g_shift += channels) {
        column_sums(g, out, 0, sums, 0, partial, rows, channels);
        for (long c = 0; c < channels; c++) g_shift[c] = (float)sums[c];
        for (long at = 0; at < rows * channels; at++) g_x[at] = out[at] > 0 ? g[at] : 0;
        g += rows * channels, out += rows * channels, g_x += rows * channels;
    }
}
