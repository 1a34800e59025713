// What a checkpoint is, as one number: whether tokens that were drawn from one
// may be continued by another.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/config/config.h"

namespace moebius {

// Of config.json, the tokenizer's files, the weights, and the type of the KV.
// Two that differ in any of it have different ones, but for chance; the same
// files in another place have the same.
//
// Weights are opaque files: name, size and bytes. Files of up to 64 MiB count
// as a whole. Of a larger one its first block, its safetensors header, and
// blocks of 4 KiB at even distances: 4,096 of them, fewer when there are many
// files, so that 470 GB take seconds and not the minutes that reading them
// takes. What training writes changes every block, what an editor of tensors
// writes changes names and sizes in the header; a few bytes changed by hand may
// go unnoticed. Made-up weights (load_format: dummy) are that word.
//
// Errors: a file that cannot be read, which is named. Files that are not there
// are none: a worker that loads them says so.
absl::StatusOr<uint64_t> FingerprintCheckpoint(const Config& config);

}  // namespace moebius
