#include "worker/model/safetensors.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/checkpoint_writer.h"
#include "tests/unit/worker/model/test_group.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

struct BadHeader {
  const char* header;
  int64_t data_bytes;
  const char* message;
};

void PrintTo(const BadHeader& bad, std::ostream* out) { *out << bad.header; }

class MalformedHeader : public testing::TestWithParam<BadHeader> {};

TEST_P(MalformedHeader, IsRefusedWithFileAndReason) {
  EXPECT_THAT(
      ParseSafetensorsHeader(GetParam().header, GetParam().data_bytes, "f.st"),
      StatusIs(StatusCode::kInvalidArgument,
               AllOf(HasSubstr("f.st: "), HasSubstr(GetParam().message))));
}

#define T(type, shape, offsets) \
  "{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

INSTANTIATE_TEST_SUITE_P(
    Table, MalformedHeader,
    testing::Values(
        BadHeader{"", 0, "not valid JSON"}, BadHeader{"{", 0, "not valid JSON"},
        BadHeader{"{}x", 0, "not valid JSON"},
        BadHeader{"{\"\xff\":1}", 0, "not valid JSON"},
        BadHeader{"[]", 0, "has a list"}, BadHeader{"7", 0, "has a number"},
        BadHeader{"\"x\"", 0, "has a string"}, BadHeader{"null", 0, "has null"},
        BadHeader{"{}", 4, "0 of 4 bytes"},
        BadHeader{"{\"a\":1}", 0, "tensor 'a' has a number"},
        BadHeader{"{\"a\":{}}", 0, "'a' must have dtype"},
        BadHeader{"{\"a\":[]}", 0, "'a' has a list"},
        BadHeader{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
                  "must have dtype, shape and data_offsets"},
        BadHeader{"{\"a\":{\"dtype\":\"F32\",\"extra\":1}}", 4,
                  "unknown key 'extra'"},
        BadHeader{"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4,
                  "key dtype twice"},
        BadHeader{"{\"a\":{\"dtype\":{}}}", 4, "has an object"},
        BadHeader{"{\"a\":{\"shape\":{}}}", 4, "has an object"},
        BadHeader{"{\"a\":{\"shape\":[[1]]}}", 4, "has a list"},
        BadHeader{"{\"a\":{\"shape\":[true]}}", 4, "has a boolean"},
        BadHeader{"{\"__metadata__\":{\"a\":{}}}", 0, "has an object"},
        BadHeader{"{\"__metadata__\":7}", 0, "has a number"},
        BadHeader{"{\"a\":" T("F31", "[1]", "[0,4]") "}", 4,
                  "unknown dtype 'F31'"},
        BadHeader{"{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4,
                  "negative number"},
        BadHeader{"{\"a\":" T("F32", "[1.0]", "[0,4]") "}", 4, "a fraction"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[0,4,8]") "}", 4,
                  "more than 2 numbers"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[0]") "}", 4, "[begin, end]"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, "begin <= end"},
        BadHeader{"{\"a\":" T("F32", "[2]", "[0,4]") "}", 4,
                  "4 bytes of data, but dtype and shape make 8"},
        BadHeader{"{\"a\":" T("F4", "[3]", "[0,1]") "}", 1, "bytes of data"},
        BadHeader{"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,0]") "}", 0,
                  "beyond 2^63 bits"},
        BadHeader{"{\"a\":" T("F32", "[0,4294967296,4294967296,9]",
                              "[0,18446744073709551615]") "}",
                  0, "beyond 2^63 - 1"},
        BadHeader{"{\"a\":" T("F32", "[99999999999999999999]", "[0,4]") "}", 4,
                  "tensor 'a' has a fraction"},
        BadHeader{"{\"a\":" T("F32", "[1e999]", "[0,4]") "}", 4,
                  "not valid JSON"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]",
                                                                 "[4,8]") "}",
                  8, "'a' occurs twice"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[0,4]") "}", 8, "4 of 8 bytes"},
        BadHeader{"{\"a\":" T("F32", "[2]", "[0,8]") "}", 4,
                  "ends at byte 8 of 4"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "leaving a hole"},
        BadHeader{"{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]",
                                                                 "[4,12]") "}",
                  12, "'b' starts at byte 4, inside its neighbour"},
        BadHeader{"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]",
                                                                 "[0,4]") "}",
                  4, "inside its neighbour"}));

TEST(SafetensorsHeader, TooManyDimensionsAreRefused) {
  std::string shape = "1";
  for (int i = 0; i < 32; ++i) shape += ",1";
  EXPECT_THAT(
      ParseSafetensorsHeader("{\"a\":{\"shape\":[" + shape + "]}}", 4, "f"),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("dimensions")));
}

TEST(SafetensorsHeader, DeepNestingIsRefused) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += open;
    EXPECT_THAT(ParseSafetensorsHeader(deep, 0, "f"),
                StatusIs(StatusCode::kInvalidArgument));
  }
}

TEST(SafetensorsHeader, TensorsComeInTheOrderOfTheirPlaces) {
  const auto tensors = ParseSafetensorsHeader(
      "{\"b\":" T("I64", "[1]", "[4,12]") ",\"__metadata__\":{\"x\":\"y\"},"
      "\"empty\":" T("F16", "[0,7]", "[4,4]") ",\"a\":"
      T("BF16", "[2,1]", "[0,4]") "}   ", 12, "f");
  ASSERT_THAT(tensors, IsOk());
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].type, TensorType::kBf16);
  EXPECT_EQ((*tensors)[0].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ((*tensors)[1].name, "empty");
  EXPECT_EQ((*tensors)[2].name, "b");
  EXPECT_EQ((*tensors)[2].type, TensorType::kOther);
  EXPECT_EQ((*tensors)[2].type_name, "I64");
  EXPECT_EQ((*tensors)[2].end, 12);
}

TEST(SafetensorsIndex, OnlyPlainFileNamesAreTaken) {
  for (const char* bad :
       {"../x", "a/b", "/etc/passwd", "", ".", "..", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(
        ParseSafetensorsIndex(
            std::string("{\"weight_map\":{\"t\":\"") + bad + "\"}}", "i.json"),
        StatusIs(StatusCode::kInvalidArgument,
                 AllOf(HasSubstr("i.json: weight_map: "),
                       HasSubstr("not a plain file name"))))
        << bad;
  }
  for (const char* bad :
       {"", "{}", "[]", "{\"weight_map\":[]}", "{\"weight_map\":{\"t\":7}}"}) {
    EXPECT_THAT(ParseSafetensorsIndex(bad, "i.json"),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("i.json: ")));
  }
  const auto files = ParseSafetensorsIndex(
      "{\"metadata\":{\"a\":[{\"b\":null}],\"weight_map\":{\"x\":7}},\"z\":[1],"
      "\"weight_map\":{\"t\":\"m-1.safetensors\"},\"y\":{\"u\":\"v\"}}",
      "i");
  ASSERT_THAT(files, IsOk());
  EXPECT_EQ(files->size(), 1u);
  EXPECT_EQ(files->at("t"), "m-1.safetensors");
}

TEST(Checkpoint, FilesThatAreCutShortOrMissingAreErrors) {
  TempDir dir;
  const std::string path = dir.File("model.safetensors");
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kNotFound, HasSubstr(path)));
  WriteFile(path, "1234567");
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("too short")));
  WriteFile(path, std::string(8, '\xff'));
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("header of")));
  const std::string good = Safetensors({{"a", {2}, {1, 2}}}, TensorType::kF32);
  for (size_t size = 8; size < good.size(); ++size) {
    WriteFile(path, good.substr(0, size));
    EXPECT_THAT(Checkpoint::Open(dir.path()),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(path)));
  }
  WriteFile(path, good);
  EXPECT_THAT(Checkpoint::Open(dir.path()), IsOk());
}

TEST(Checkpoint, AFileCutShortAfterOpeningIsDataLoss) {
  TempDir dir;
  const std::string path = dir.File("model.safetensors");
  const std::string good = Safetensors({{"a", {2}, {1, 2}}}, TensorType::kF32);
  WriteFile(path, good);
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_THAT(checkpoint, IsOk());
  WriteFile(path, good.substr(0, good.size() - 1));
  std::vector<float> out(2);
  EXPECT_THAT((*checkpoint)->ReadFloat("a", absl::MakeSpan(out)),
              StatusIs(StatusCode::kDataLoss, HasSubstr(path)));
}

TEST(Checkpoint, WrongNamesShapesAndTypesNameFileAndTensor) {
  TempDir dir;
  WriteFile(dir.File("model.safetensors"),
            RawSafetensors("{\"i\":" T("I16", "[2,2]", "[0,8]") ",\"f\":" T(
                               "F32", "[2,2]", "[8,24]") "}",
                           24));
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_THAT(checkpoint, IsOk());
  EXPECT_THAT(
      (*checkpoint)->Check("x", {2, 2}),
      StatusIs(StatusCode::kNotFound, AllOf(HasSubstr("model.safetensors"),
                                            HasSubstr("no tensor 'x'"))));
  EXPECT_THAT(
      (*checkpoint)->Check("f", {4}),
      StatusIs(StatusCode::kInvalidArgument,
               AllOf(HasSubstr("'f' has shape [2, 2]"), HasSubstr("[4]"))));
  EXPECT_THAT((*checkpoint)->Check("i", {2, 2}),
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("'i' has dtype I16"),
                             HasSubstr("allowed: BF16, F16, F32"))));
  EXPECT_THAT((*checkpoint)->Check("f", {2, 2}), IsOk());
}

TEST(Checkpoint, ShardsMustHoldWhatTheIndexSays) {
  TempDir dir;
  const std::vector<NamedTensor> tensors = {{"a", {1}, {1}}, {"b", {1}, {2}}};
  WriteCheckpoint(dir.path(), tensors, TensorType::kF32, 2);
  ASSERT_THAT(Checkpoint::Open(dir.path()), IsOk());
  WriteFile(dir.File("model-1.safetensors"),
            Safetensors({tensors[0]}, TensorType::kF32));
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("is also in")));
  WriteFile(dir.File("model-1.safetensors"),
            Safetensors({{"c", {1}, {1}}}, TensorType::kF32));
  EXPECT_THAT(Checkpoint::Open(dir.path()),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("'b' is not in model-1.safetensors")));
  std::filesystem::remove(dir.File("model-1.safetensors"));
  EXPECT_THAT(
      Checkpoint::Open(dir.path()),
      StatusIs(StatusCode::kNotFound, HasSubstr("model-1.safetensors")));
}

TEST(Checkpoint, ShardsWithoutAnIndexAreReadIfTheirNamesCount) {
  TempDir dir;
  const auto write = [&dir](const std::string& file,
                            const std::string& tensor) {
    WriteFile(dir.File(file),
              Safetensors({{tensor, {1}, {1}}}, TensorType::kF32));
  };
  write("model-00001-of-00003.safetensors", "a");
  write("model-00003-of-00003.safetensors", "c");
  write("other.safetensors", "x");
  EXPECT_THAT(
      Checkpoint::Open(dir.path()),
      StatusIs(StatusCode::kNotFound, HasSubstr("shard 2 of 3 is missing")));
  write("model-00002-of-00003.safetensors", "b");
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_THAT(checkpoint, IsOk());
  for (const char* name : {"a", "b", "c"}) {
    EXPECT_NE((*checkpoint)->Find(name), nullptr) << name;
  }
  EXPECT_EQ((*checkpoint)->Find("x"), nullptr);
  for (const char* stray :
       {"model-00004-of-00003.safetensors", "model-00001-of-00002.safetensors",
        "model-1-of-3.safetensors", "extra-00001-of-00003.safetensors"}) {
    write(stray, "y");
    EXPECT_THAT(Checkpoint::Open(dir.path()),
                StatusIs(StatusCode::kInvalidArgument,
                         HasSubstr("does not belong to the")))
        << stray;
    std::filesystem::remove(dir.File(stray));
  }
  // One file for all wins.
  write("model.safetensors", "whole");
  EXPECT_NE((*Checkpoint::Open(dir.path()))->Find("whole"), nullptr);
}

TEST(Checkpoint, EveryTypeIsRoundedToBf16Nearest) {
  // 1 + 2^-8 lies between two BF16 numbers and goes to the even one, 1; a
  // little more goes up. 2^-24 is the smallest F16 number.
  const std::vector<float> values = {
      0.0f,       -0.0f, 1.0f + 0x1p-8f, -65504.0f, 1.0f + 0x1.8p-8f, 0x1p-24f,
      0x1.4p-15f, 3.0f};
  TempDir dir;
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBf16}) {
    WriteFile(dir.File("model.safetensors"),
              Safetensors({{"m", {2, 4}, values}}, type));
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_THAT(checkpoint, IsOk());
    std::vector<Bf16> out(8);
    ASSERT_THAT(
        (*checkpoint)
            ->ReadBf16("m", MatrixSlice::Whole(2, 4), absl::MakeSpan(out)),
        IsOk());
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(out[i].bits, ToBf16(values[i]).bits) << i;
    }
    EXPECT_EQ(ToFloat(out[2]), 1.0f);
    EXPECT_EQ(ToFloat(out[4]), 1.0f + 0x1p-7f);
  }
  const std::string inf =
      RawSafetensors("{\"v\":" T("F16", "[3]", "[0,6]") "}", 0) +
      std::string("\x00\x7c\x00\xfc\x01\x7e", 6);
  WriteFile(dir.File("model.safetensors"), inf);
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_THAT(checkpoint, IsOk());
  std::vector<float> out(3);
  ASSERT_THAT((*checkpoint)->ReadFloat("v", absl::MakeSpan(out)), IsOk());
  EXPECT_EQ(out[0], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out[1], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(out[2]));
}

TEST(Checkpoint, SlicesAreTheSlicesOfTheWholeAndReadNoMore) {
  constexpr int64_t kRows = 12, kCols = 4096;
  NamedTensor tensor{"m", {kRows, kCols}, {}};
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    tensor.values.push_back(static_cast<float>(i % 251) - 100.0f);
  }
  TempDir dir;
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBf16}) {
    const int64_t size = type == TensorType::kF32 ? 4 : 2;
    WriteFile(dir.File("model.safetensors"), Safetensors({tensor}, type));
    for (const MatrixSlice slice : {MatrixSlice::Whole(kRows, kCols),
                                    MatrixSlice::RowRange(kRows, kCols, 3, 7),
                                    MatrixSlice::ColRange(kRows, kCols, 64, 96),
                                    MatrixSlice{kRows, kCols, 2, 5, 0, 4032},
                                    MatrixSlice{kRows, kCols, 5, 5, 0, 8}}) {
      const auto checkpoint = Checkpoint::Open(dir.path());
      ASSERT_THAT(checkpoint, IsOk());
      std::vector<Bf16> out(static_cast<size_t>(slice.num_elements()));
      ASSERT_THAT((*checkpoint)->ReadBf16("m", slice, absl::MakeSpan(out)),
                  IsOk());
      size_t i = 0;
      for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
        for (int64_t col = slice.col_begin; col < slice.col_end; ++col, ++i) {
          ASSERT_EQ(ToFloat(out[i]), tensor.values[row * kCols + col]);
        }
      }
      const int64_t skipped = (kCols - slice.num_cols()) * size;
      const int64_t wanted = slice.num_elements() * size;
      EXPECT_LE((*checkpoint)->bytes_read(),
                wanted + (skipped < 4096 ? slice.num_rows() * skipped : 0));
      EXPECT_GE((*checkpoint)->bytes_read(), wanted);
    }
  }
}

}  // namespace
}  // namespace moebius
