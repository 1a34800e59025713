// Rows of the embedding table, and rows out of others.
#pragma once

#include <cstdint>

#include "kernels/formats.h"

namespace moebius {

// out row i = row ids[i] of the table W [vocabulary][hidden].
//   ids  [out.rows]
// REQUIRES: ids inside the table; out.cols == table.k.
void Embed(const Cpu& device, const PackedMatrix& table, const int32_t* ids,
           Rows out);

// Row j of x becomes row rows[j] of x, for the first `count` j.
// REQUIRES: rows ascend strictly, inside x.
void KeepRows(const Cpu& device, const int32_t* rows, int count, Rows x);

}  // namespace moebius
