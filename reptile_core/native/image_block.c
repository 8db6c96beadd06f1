/* The first block, whose images have few channels: the output's statistics follow from the small covariance of the
 * patches, so that normalization becomes a change of the weights, and what is large is written once.
 * Patches come as (lanes, rows, size), weights as (lanes, size, f). */

#include <string.h>
#include <tgmath.h>

#include "shape.h"
#include "tiles.h"

/* Patches (n, out_height, out_width, 3, 3, channels), for images of few channels. */
void patches(const Real *x, Real *out, const Shape *s)
{
    const long c = s->channels, image = s->height * s->width * c;
    for (long b = 0; b < s->lanes * s->n; b++, x += image)
        for (long o = 0; o < s->out_height; o++)
            for (long p = 0; p < s->out_width; p++)
                for (long tap = 0; tap < TAPS; tap++, out += c) {
                    const long input = seen(s, o, p, tap);
                    for (long k = 0; k < c; k++) out[k] = input < 0 ? 0 : x[input * c + k];
                }
}

/* out[row] = x[row] @ w, or max(0, x[row] @ w), for `vectors` columns of w. */
INLINE void product_tile(const int relu, const int rows, const int vectors, const Real *x, const Real *w, Real *out,
                         long size, long f)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, 0, 0);
    for (long k = 0; k < size; k++) {
        fetch(vectors, loaded, w + k * f);
        add_products(rows, vectors, sums, x + k, size, loaded);
    }
    if (relu) {
        UNROLL
        for (int row = 0; row < rows; row++)
            UNROLL
            for (int v = 0; v < vectors; v++) sums[row][v] = where_above(sums[row][v], sums[row][v]);
    }
    store(rows, vectors, sums, out, f);
}

/* sums[row] += sum over `count` rows of x[row] * g, for `vectors` columns of g, whose rows are g_step apart. */
INLINE void outer_tile(const int rows, const int vectors, const Real *x, long size, const Real *g, long g_step,
                       Real *out, long f, long count)
{
    Vector sums[TALLEST][WIDEST], loaded[WIDEST];
    load(rows, vectors, sums, out, f);
    for (long t = 0; t < count; t++) {
        fetch(vectors, loaded, g + t * g_step);
        add_products(rows, vectors, sums, x + t * size, 1, loaded);
    }
    store(rows, vectors, sums, out, f);
}

/* out (n, f) += x^T g of `count` rows of x (size) and g (f): the first n columns of x. */
static void add_outer_products(const Real *x, long size, long n, const Real *g, Real *out, long f, long count)
{
    for (long k = 0, vectors; k < f; k += vectors * LANES) {
        vectors = widest(f - k);
        for (long tile = 0, tiles = (n + TALLEST - 1) / TALLEST; tile < tiles; tile++) {
            const long a = n * tile / tiles, height = n * (tile + 1) / tiles - a;
#define TILE(r, v) outer_tile(r, v, x + a, size, g + k, f, out + a * f + k, f, count)
            OF_SIZE(height, vectors)
#undef TILE
        }
    }
}

INLINE void product_with(const int relu, const Real *x, const Real *w, Real *out, long lanes, long rows, long size,
                         long f)
{
    for (long lane = 0; lane < lanes; lane++, w += size * f)
        for (long row = 0, height; row < rows; row += height, x += height * size, out += height * f) {
            height = rows - row < TALLEST ? rows - row : TALLEST;
            for (long k = 0, vectors; k < f; k += vectors * LANES) {
                vectors = widest(f - k);
#define TILE(r, v) product_tile(relu, r, v, x, w + k, out + k, size, f)
                OF_SIZE(height, vectors)
#undef TILE
            }
        }
}

/* out = x @ w for x (lanes, rows, size) and w (lanes, size, f). */
void product(const Real *x, const Real *w, Real *out, long lanes, long rows, long size, long f)
{
    product_with(0, x, w, out, lanes, rows, size, f);
}

/* out = max(0, x @ w). */
void product_relu(const Real *x, const Real *w, Real *out, long lanes, long rows, long size, long f)
{
    product_with(1, x, w, out, lanes, rows, size, f);
}

enum { BLOCK = 64 }; /* rows that are masked, or summed in Real, before what comes of them leaves the cache */

/* The gradient of `product_relu` in w, from that in out. */
void product_relu_backward(const Real *g, const Real *out, const Real *x, Real *g_w, long lanes, long rows,
                           long size, long f)
{
    Real masked[BLOCK * f];
    memset(g_w, 0, lanes * size * f * sizeof(Real));
    for (long lane = 0; lane < lanes; lane++, g_w += size * f)
        for (long row = 0, count; row < rows; row += count, x += count * size, g += count * f, out += count * f) {
            count = rows - row < BLOCK ? rows - row : BLOCK;
            for (long k = 0; k < count * f; k++) masked[k] = out[k] > 0 ? g[k] : 0;
            add_outer_products(x, size, size, masked, g_w, f, count);
        }
}

/* The gradient of `product` in w, from that in out, of one lane. */
void product_backward(const Real *g, const Real *x, Real *g_w, long rows, long size, long f)
{
    memset(g_w, 0, size * f * sizeof(Real));
    for (long row = 0; row < rows; row += BLOCK)
        add_outer_products(x + row * size, size, size, g + row * f, g_w, f, rows - row < BLOCK ? rows - row : BLOCK);
}

/* Centres each column of x (rows, size - 1) into centred (rows, size), whose last column is 1, and takes the covariance
 * (size - 1, size - 1). */
void centre(const Real *x, Real *centred, Real *covariance, long rows, long size)
{
    const long n = size - 1, wide = (n + LANES - 1) / LANES * LANES;
    double mean[n], sums[n * n];
    Real padded[BLOCK * wide], products[n * wide];
    memset(mean, 0, sizeof mean), memset(sums, 0, sizeof sums), memset(padded, 0, sizeof padded);
    for (long row = 0; row < rows; row++)
        for (long k = 0; k < n; k++) mean[k] += x[row * n + k];
    for (long k = 0; k < n; k++) mean[k] /= rows;
    for (long row = 0, count; row < rows; row += count) {
        count = rows - row < BLOCK ? rows - row : BLOCK;
        for (long t = 0; t < count; t++, x += n, centred += size) {
            for (long k = 0; k < n; k++) padded[t * wide + k] = centred[k] = x[k] - (Real)mean[k];
            centred[n] = 1;
        }
        memset(products, 0, sizeof products);
        add_outer_products(padded, wide, n, padded, products, wide, count);
        for (long j = 0; j < n; j++)
            for (long k = 0; k < n; k++) sums[j * n + k] += products[j * wide + k];
    }
    for (long k = 0; k < n * n; k++) covariance[k] = sums[k] / rows;
}

/* normalizing (size, f): w scaled to variance 1 and by scale, and shift as its last row; product = covariance @ w. */
void normalize_weights(const Real *w, const Real *scale, const Real *shift, const Real *covariance, Real *product,
                       Real *rstd, Real *normalizing, double eps, long size, long f)
{
    const long n = size - 1;
    memset(product, 0, n * f * sizeof(Real));
    for (long j = 0; j < n; j++)
        for (long k = 0; k < n; k++)
            for (long c = 0; c < f; c++) product[j * f + c] += covariance[j * n + k] * w[k * f + c];
    for (long c = 0; c < f; c++) {
        double variance = 0;
        for (long k = 0; k < n; k++) variance += w[k * f + c] * product[k * f + c];
        rstd[c] = 1 / sqrt(variance + eps);
    }
    for (long k = 0; k < n; k++)
        for (long c = 0; c < f; c++) normalizing[k * f + c] = w[k * f + c] * scale[c] * rstd[c];
    memcpy(normalizing + n * f, shift, f * sizeof(Real));
}

/* The gradients of the above in w, scale and shift, from that in normalizing: rstd changes by -rstd^3 product dw. */
void normalize_weights_backward(const Real *g, const Real *w, const Real *scale, const Real *product,
                                const Real *rstd, Real *g_w, Real *g_scale, Real *g_shift, long size, long f)
{
    const long n = size - 1;
    for (long c = 0; c < f; c++) {
        Real along = 0;
        for (long k = 0; k < n; k++) along += g[k * f + c] * w[k * f + c];
        g_scale[c] = along * rstd[c];
    }
    for (long k = 0; k < n; k++)
        for (long c = 0; c < f; c++) {
            const Real factor = scale[c] * rstd[c];
            g_w[k * f + c] = factor * (g[k * f + c] - g_scale[c] * rstd[c] * product[k * f + c]);
        }
    memcpy(g_shift, g + n * f, f * sizeof(Real));
}
