#include "coordinator/api/call_context.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/fnv.h"

namespace moebius {
namespace {

constexpr std::string_view kMagic = "M1 ";

// Cuts a number that ends with `end` from the front of `bytes`.
template <typename Number>
bool TakeNumber(std::string_view& bytes, char end, Number& number) {
  const size_t at = bytes.find(end);
  if (at == bytes.npos || at > 20 ||
      !absl::SimpleAtoi(AbslView(bytes.substr(0, at)), &number)) {
    return false;
  }
  bytes.remove_prefix(at + 1);
  return true;
}

bool TakeText(std::string_view& bytes, std::string& text) {
  size_t size = 0;
  if (!TakeNumber(bytes, ':', size) || size > bytes.size()) return false;
  text = std::string(bytes.substr(0, size));
  bytes.remove_prefix(size);
  return true;
}

uint64_t HashOf(std::string_view text, uint64_t more) {
  Fnv1a hash;
  for (unsigned char c : text) hash.Add(c);
  hash.Add(more);
  return hash.hash();
}

}  // namespace

std::string EncodeCallContext(const CallContext& context) {
  return Cat(kMagic, context.chat ? 1 : 0, " ", context.durable ? 1 : 0, " ",
             context.created, " ", context.fingerprint, " ", context.key.size(),
             ":", context.key, context.answer_id.size(), ":",
             context.answer_id);
}

absl::StatusOr<CallContext> ParseCallContext(std::string_view bytes) {
  CallContext context;
  int chat = 0, durable = 0;
  const bool magic = bytes.substr(0, kMagic.size()) == kMagic;
  if (magic) bytes.remove_prefix(kMagic.size());
  if (!magic || !TakeNumber(bytes, ' ', chat) ||
      !TakeNumber(bytes, ' ', durable) ||
      !TakeNumber(bytes, ' ', context.created) ||
      !TakeNumber(bytes, ' ', context.fingerprint) ||
      !TakeText(bytes, context.key) || !TakeText(bytes, context.answer_id) ||
      !bytes.empty() || chat < 0 || chat > 1 || durable < 0 || durable > 1) {
    return absl::InvalidArgumentError("malformed context of a request");
  }
  context.chat = chat == 1;
  context.durable = durable == 1;
  return context;
}

std::string ScopedKey(std::string_view key, std::string_view authorization) {
  return absl::StrFormat("%016x/", HashOf(authorization, 0)) + std::string(key);
}

uint64_t FingerprintOf(std::string_view route, std::string_view body) {
  return HashOf(body, HashOf(route, body.size()));
}

}  // namespace moebius
