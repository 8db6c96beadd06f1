#pragma once

/* Tiles of matrix products that stay in registers: up to 6 rows times some vectors of columns. Products are added up in
 * an order that does not depend on the tile. */

#include "real.h"

#if defined(__AVX512F__)
enum { BYTES = 64, WIDEST = 4 }; /* of a vector; vectors of a tile: 6 x 4 sums fill 24 of 32 registers */
#elif defined(__AVX__)
enum { BYTES = 32, WIDEST = 2 }; /* 12 of 16 */
#else
enum { BYTES = 16, WIDEST = 4 };
#endif
enum { TALLEST = 6, LANES = BYTES / sizeof(Real) };

typedef Real Vector __attribute__((vector_size(BYTES), aligned(sizeof(Real)), may_alias));
typedef Bits Mask __attribute__((vector_size(BYTES)));

/* value where out > 0, else 0. */
INLINE Vector where_above(Vector out, Vector value)
{
    return (Vector)((Mask)value & (Mask)(out > 0));
}

INLINE void fetch(const int vectors, Vector loaded[WIDEST], const Real *from)
{
    UNROLL
    for (int v = 0; v < vectors; v++) loaded[v] = *(const Vector *)(from + v * LANES);
}

/* sums[row] += from[row * step] * loaded, for the rows and vectors of a tile. */
INLINE void add_products(const int rows, const int vectors, Vector sums[TALLEST][WIDEST], const Real *from, long step,
                         const Vector loaded[WIDEST])
{
    UNROLL
    for (int row = 0; row < rows; row++) {
        const Real value = from[row * step];
        UNROLL
        for (int v = 0; v < vectors; v++) sums[row][v] += value * loaded[v];
    }
}

INLINE void load(const int rows, const int vectors, Vector sums[TALLEST][WIDEST], const Real *from, long step)
{
    UNROLL
    for (int row = 0; row < rows; row++)
        UNROLL
        for (int v = 0; v < vectors; v++)
            sums[row][v] = from ? *(const Vector *)(from + row * step + v * LANES) : (Vector){0};
}

INLINE void store(const int rows, const int vectors, Vector sums[TALLEST][WIDEST], Real *to, long step)
{
    UNROLL
    for (int row = 0; row < rows; row++)
        UNROLL
        for (int v = 0; v < vectors; v++) *(Vector *)(to + row * step + v * LANES) = sums[row][v];
}

/* Calls TILE(rows, vectors) with constants, so that each size is compiled by itself and its sums lie in registers. */
#define OF_HEIGHT(rows, vectors)                     \
    switch (rows) {                                  \
    case 1: TILE(1, vectors); break;                 \
    case 2: TILE(2, vectors); break;                 \
    case 3: TILE(3, vectors); break;                 \
    case 4: TILE(4, vectors); break;                 \
    case 5: TILE(5, vectors); break;                 \
    default: TILE(6, vectors);                       \
    }
#define OF_SIZE(rows, vectors)                       \
    if (vectors == 1) { OF_HEIGHT(rows, 1) }         \
    else if (vectors == 2) { OF_HEIGHT(rows, 2) }    \
    else { OF_HEIGHT(rows, WIDEST) }

/* The most vectors that fit into the channels left: 4, 2 or 1. */
INLINE long widest(long channels)
{
    long vectors = WIDEST;
    while (vectors > 1 && vectors * LANES > channels) vectors /= 2;
    return vectors;
}
