#include "coordinator/text/bpe.h"

#include <random>
#include <string>
#include <thread>

#include "gmock/gmock.h"

namespace moebius {
namespace {

using Ids = std::vector<int32_t>;

// A vocabulary over bytes: ids 0 to 255, then one for each merge.
class Vocabulary {
 public:
  Vocabulary() {
    for (int byte = 0; byte < 256; ++byte) {
      byte_tokens[byte] = byte;
      tokens.emplace_back(1, static_cast<char>(byte));
    }
  }
  void Merge(int32_t left, int32_t right) {
    const std::string bytes = tokens[left] + tokens[right];
    for (const BpeMerge& merge : merges) {
      if (merge.left == left && merge.right == right) return;
    }
    int32_t result = -1;
    for (size_t id = 0; id < tokens.size(); ++id) {
      if (tokens[id] == bytes) result = static_cast<int32_t>(id);
    }
    if (result < 0) {
      result = static_cast<int32_t>(tokens.size());
      tokens.push_back(bytes);
    }
    merges.push_back({left, right, result});
  }
  BpeModel Build(bool ignore_merges = false) {
    ids.clear();
    for (size_t id = 0; id < tokens.size(); ++id) {
      ids.emplace(tokens[id], static_cast<int32_t>(id));
    }
    return BpeModel(byte_tokens, merges, &ids,
                    static_cast<int32_t>(tokens.size()), ignore_merges);
  }

  std::array<int32_t, 256> byte_tokens;
  std::vector<std::string> tokens;
  std::vector<BpeMerge> merges;
  BytesToId ids;
};

// The definition: of all merges that apply, the first in the list, at its
// leftmost place; again until none does.
Ids Reference(const Vocabulary& vocabulary, std::string_view word) {
  Ids ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  for (bool merged = true; merged;) {
    merged = false;
    for (const BpeMerge& merge : vocabulary.merges) {
      for (size_t i = 0; i + 1 < ids.size() && !merged; ++i) {
        if (ids[i] != merge.left || ids[i + 1] != merge.right) continue;
        ids[i] = merge.result;
        ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
        merged = true;
      }
      if (merged) break;
    }
  }
  return ids;
}

Ids Encode(const BpeModel& model, std::string_view word) {
  Ids ids;
  model.Encode(word, &ids);
  return ids;
}

TEST(BpeModel, LowerRanksGoFirstAndLeftmostOfEquals) {
  Vocabulary vocabulary;
  vocabulary.Merge('b', 'c');
  vocabulary.Merge('a', 'b');
  vocabulary.Merge('a', 'a');
  const BpeModel model = vocabulary.Build();
  EXPECT_EQ(Encode(model, "abc"), (Ids{'a', 256}));
  EXPECT_EQ(Encode(model, "aaa"), (Ids{258, 'a'}));
  EXPECT_EQ(Encode(model, ""), Ids{});
}

TEST(BpeModel, ATokenThatMergingCannotReachIsNotUsed) {
  Vocabulary vocabulary;
  vocabulary.tokens.push_back("xyz");
  const BpeModel model = vocabulary.Build();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Encode(model, "xyz"), (Ids{'x', 'y', 'z'}));
  }
  const BpeModel ignoring = vocabulary.Build(/*ignore_merges=*/true);
  EXPECT_EQ(Encode(ignoring, "xyz"), (Ids{256}));
  EXPECT_EQ(Encode(ignoring, "xyzx"), (Ids{'x', 'y', 'z', 'x'}));
}

TEST(BpeModel, AgreesWithTheDefinitionOnRandomVocabularies) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    Vocabulary vocabulary;
    for (int i = 0; i < 40; ++i) {
      const auto pick = [&]() -> int32_t {
        const int32_t made =
            static_cast<int32_t>(vocabulary.tokens.size()) - 256;
        if (made > 0 && random() % 2 == 0) {
          return 256 + static_cast<int32_t>(random() % made);
        }
        return 'a' + static_cast<int32_t>(random() % 3);
      };
      const int32_t left = pick();
      vocabulary.Merge(left, pick());
    }
    const BpeModel model = vocabulary.Build();
    // On both sides of the length where the algorithm changes.
    for (const size_t size : {2, 3, 7, 20, 47, 48, 49, 50, 90, 200}) {
      for (int i = 0; i < 4; ++i) {
        std::string word;
        for (size_t k = 0; k < size; ++k) word += 'a' + random() % 3;
        ASSERT_EQ(Encode(model, word), Reference(vocabulary, word)) << word;
        ASSERT_EQ(Encode(model, word), Reference(vocabulary, word)) << word;
      }
    }
  }
}

TEST(BpeModel, AVeryLongWordIsNotQuadratic) {
  Vocabulary vocabulary;
  vocabulary.Merge('a', 'a');
  vocabulary.Merge(256, 256);
  vocabulary.Merge(257, 257);
  const BpeModel model = vocabulary.Build();
  const Ids ids = Encode(model, std::string(1 << 19, 'a'));
  EXPECT_EQ(ids, Ids((1 << 19) / 8, 258));
}

TEST(BpeModel, ThreadsMayShareIt) {
  Vocabulary vocabulary;
  vocabulary.Merge('a', 'b');
  vocabulary.Merge(256, 'c');
  vocabulary.tokens.push_back("ca");
  const BpeModel model = vocabulary.Build();
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        result = Encode(model, "abc");
        model.Encode("ca", &result);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, (Ids{257, 'c', 'a'}));
}

}  // namespace
}  // namespace moebius
