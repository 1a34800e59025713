#include "coordinator/http/gzip.h"

#include <zlib.h>

#include <string>

#include "gtest/gtest.h"

namespace moebius {
namespace {

std::string Gunzip(const std::string& data, size_t size) {
  std::string out(size + 1, '\0');
  z_stream stream{};
  EXPECT_EQ(inflateInit2(&stream, 15 + 16), Z_OK);
  std::string in = data;
  stream.next_in = reinterpret_cast<Bytef*>(in.data());
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  inflateEnd(&stream);
  return out;
}

TEST(Gzip, WhatIsCompressedComesBack) {
  std::string noise;
  for (uint32_t i = 0, x = 1; i < 100'000; ++i) {
    x = x * 1664525 + 1013904223;
    noise += static_cast<char>(x >> 24);
  }
  for (const std::string& text :
       {std::string(), std::string("a"), std::string(50'000, 'b'), noise}) {
    EXPECT_EQ(Gunzip(Gzip(text), text.size()), text);
  }
  EXPECT_LT(Gzip(std::string(50'000, 'b')).size(), 1000u);
}

}  // namespace
}  // namespace moebius
