// The tokenizer of the checkpoint that comes with the repository.
#pragma once

#include <cstdlib>
#include <string>

#include "coordinator/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {

inline const Tokenizer& TestTokenizer() {
  static const Tokenizer* tokenizer = [] {
    const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
    auto loaded =
        Tokenizer::Load(std::string(source == nullptr ? "." : source) +
                        "/models/verse-moe/tokenizer.json");
    EXPECT_THAT(loaded, IsOk());
    return loaded->release();
  }();
  return *tokenizer;
}

}  // namespace moebius
