#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(AttendTile);

// Rows of a chunk that share the loads of K and V, times the heads of a group.
constexpr int kTileQueries = 32;

struct Tile {
  const QueryChunk* chunk;
  int kv_head;
  int first_row;  // in the chunk
  int num_rows;
};

template <typename T>
T ToElement(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    return ToBf16(value);
  }
}

template <typename T>
void WriteRow(const float* k, const float* v, int head_dim, int offset,
              std::byte* k_page, std::byte* v_page) {
  T* k_to = reinterpret_cast<T*>(k_page) + offset;
  T* v_to = reinterpret_cast<T*>(v_page) + ptrdiff_t{offset} * head_dim;
  for (int i = 0; i < head_dim; ++i) {
    k_to[ptrdiff_t{i} * kPageTokens] = ToElement<T>(k[i]);
    v_to[i] = ToElement<T>(v[i]);
  }
}

void WriteChunk(ConstRows k, ConstRows v, const QueryChunk& chunk,
                int num_kv_heads, int layer, const KvPool& pool) {
  const KvPageFormat& format = pool.format;
  for (int i = 0; i < chunk.num_rows; ++i) {
    const int position = chunk.first_position + i;
    const int offset = position % kPageTokens;
    const uint32_t* pages =
        chunk.pages.data() +
        static_cast<size_t>(position / kPageTokens) * num_kv_heads;
    for (int h = 0; h < num_kv_heads; ++h) {
      std::byte* page = pool.base + pages[h] * format.page_bytes();
      const int row = chunk.first_row + i;
      const float* k_row = k.row(row) + ptrdiff_t{h} * format.head_dim;
      const float* v_row = v.row(row) + ptrdiff_t{h} * format.head_dim;
      if (format.type == KvType::kFloat32) {
        WriteRow<float>(k_row, v_row, format.head_dim, offset,
                        page + format.k_offset(layer),
                        page + format.v_offset(layer));
      } else {
        WriteRow<Bf16>(k_row, v_row, format.head_dim, offset,
                       page + format.k_offset(layer),
                       page + format.v_offset(layer));
      }
    }
  }
}

}  // namespace

void WriteKv(ConstRows k, ConstRows v, absl::Span<const QueryChunk> chunks,
             int num_kv_heads, int layer, const KvPool& pool,
             ThreadPool* threads) {
  CHECK(k.cols == num_kv_heads * pool.format.head_dim && v.cols == k.cols);
  CHECK(0 <= layer && layer < pool.format.num_layers);
  ParallelFor(threads, static_cast<int>(chunks.size()), [&](int i) {
    WriteChunk(k, v, chunks[i], num_kv_heads, layer, pool);
  });
}

void PagedAttention(ConstRows q, absl::Span<const QueryChunk> chunks,
                    int num_kv_heads, const KvLayer<Cpu>& kv, Rows out,
                    ThreadPool* threads) {
  const KvPool& pool = kv.pool;
  const int head_dim = pool.format.head_dim;
  CHECK(num_kv_heads > 0 && head_dim % kPanelRows == 0);
  CHECK(q.cols % (num_kv_heads * head_dim) == 0 && out.cols == q.cols);
  CHECK(0 <= kv.layer && kv.layer < pool.format.num_layers && kv.window >= 0);
  const int group = q.cols / (num_kv_heads * head_dim);
  const int tile_rows = std::max(1, kTileQueries / group);
  thread_local std::vector<Tile> tiles;
  tiles.clear();
  for (const QueryChunk& chunk : chunks) {
    for (int h = 0; h < num_kv_heads; ++h) {
      for (int first = 0; first < chunk.num_rows; first += tile_rows) {
        tiles.push_back(
            {&chunk, h, first, std::min(tile_rows, chunk.num_rows - first)});
      }
    }
  }
  const Tile* const all_tiles = tiles.data();  // of this thread
  ParallelFor(threads, static_cast<int>(tiles.size()), [&](int i) {
    const Tile& tile = all_tiles[i];
    AttentionTile args;
    args.chunk = tile.chunk;
    args.first_row = tile.first_row;
    args.num_rows = tile.num_rows;
    args.kv_head = tile.kv_head;
    args.num_kv_heads = num_kv_heads;
    args.group = group;
    args.layer = kv.layer;
    args.window = kv.window;
    if (kv.sinks != nullptr) {
      args.sinks = kv.sinks + ptrdiff_t{tile.kv_head} * group;
    }
    HWY_DYNAMIC_DISPATCH(AttendTile)(q, args, pool, out);
  });
}

}  // namespace moebius
#endif  // HWY_ONCE
