#pragma once

#include <string.h>

#include "real.h"

enum { BLOCK = 64 }; /* rows summed in Real before they go into a double: keeps the sums exact to a float's last digits */

/* sums[c] = sum over rows of a[row, c] where keep[row, c] > 0 (everywhere if keep is NULL), and with[c] the same of
 * a[row, c] * b[row, c] if b is there. `partial` holds two rows. */
INLINE void column_sums(const Real *a, const Real *keep, const Real *b, double *sums, double *with,
                        Real *restrict partial, long rows, long channels)
{
    Real *restrict products = partial + channels;
    for (long c = 0; c < channels; c++) sums[c] = 0;
    if (b)
        for (long c = 0; c < channels; c++) with[c] = 0;
    for (long first = 0; first < rows; first += BLOCK) {
        const long end = first + BLOCK < rows ? first + BLOCK : rows;
        memset(partial, 0, 2 * channels * sizeof(Real));
        for (long row = first; row < end; row++) {
            const Real *a_row = a + row * channels, *keep_row = keep ? keep + row * channels : 0;
            const Real *b_row = b ? b + row * channels : 0;
            for (long c = 0; c < channels; c++) {
                const Real value = keep && !(keep_row[c] > 0) ? 0 : a_row[c];
                partial[c] += value;
                if (b) products[c] += value * b_row[c];
            }
        }
        for (long c = 0; c < channels; c++) sums[c] += partial[c];
        if (b)
            for (long c = 0; c < channels; c++) with[c] += products[c];
    }
}
