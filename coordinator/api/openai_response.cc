#include "coordinator/api/openai_response.h"

#include <algorithm>

#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

// One of OpenAI's words, as clients with an enumeration of them refuse others.
// Of a cut answer it is "length": it is shorter than it would have been. What
// it was cut by is in our own `stop_reason`.
std::string_view FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
    case FinishReason::kAbort:
    case FinishReason::kError:  // an error is said in place of an end
      return "length";
  }
  return "stop";
}

void AppendIds(absl::Span<const int32_t> ids, std::string* out) {
  out->push_back('[');
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendInt(ids[i], out);
  }
  out->push_back(']');
}

// A token of the completions format is a JSON string, which bytes that are no
// characters cannot be: OpenAI spells those "bytes:\xe2\x80".
std::string TokenText(std::string_view bytes) {
  if (IsValidUtf8(bytes)) return std::string(bytes);
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "bytes:";
  for (unsigned char c : bytes) {
    out.append("\\x");
    out.push_back(kHex[c >> 4]);
    out.push_back(kHex[c & 15]);
  }
  return out;
}

// Characters that begin in `bytes`.
int64_t CountCharacters(std::string_view bytes) {
  int64_t n = 0;
  for (unsigned char c : bytes) n += (c & 0xc0) != 0x80;
  return n;
}

// {"token": logprob, ...}: the likeliest and the token itself. Tokens that
// read alike are one key, whose value is the likeliest one's.
void AppendTopMap(const ScoredToken& scored, const std::string& own_text,
                  const TextCodec& codec, std::string* out) {
  std::vector<std::string> seen;
  const auto add = [&](std::string text, float logprob) {
    for (const std::string& other : seen) {
      if (other == text) return;
    }
    if (!seen.empty()) out->push_back(',');
    AppendJsonString(text, out);
    out->push_back(':');
    AppendFloat(logprob, out);
    seen.push_back(std::move(text));
  };
  out->push_back('{');
  for (const TokenLogprob& top : scored.top) {
    add(TokenText(codec.TokenBytes(top.token)), top.logprob);
  }
  add(own_text, *scored.logprob);
  out->push_back('}');
}

// "token":..,"logprob":..,"bytes":[..] of the chat format.
void AppendChatToken(int32_t token, float logprob, const TextCodec& codec,
                     std::string* out) {
  const std::string bytes = codec.TokenBytes(token);
  out->append(R"("token":)");
  AppendJsonString(RepairUtf8(bytes), out);
  out->append(R"(,"logprob":)");
  AppendFloat(logprob, out);
  out->append(R"(,"bytes":[)");
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendInt(static_cast<unsigned char>(bytes[i]), out);
  }
  out->push_back(']');
}

// "ID":{"logprob":..,"rank":..,"decoded_token":".."} of vLLM's format.
void AppendRankedToken(int32_t token, float logprob, uint32_t rank,
                       const TextCodec& codec, std::string* out) {
  out->push_back('"');
  AppendInt(token, out);
  out->append(R"(":{"logprob":)");
  AppendFloat(logprob, out);
  out->append(R"(,"rank":)");
  if (rank == 0) {
    out->append("null");
  } else {
    AppendInt(rank, out);
  }
  out->append(R"(,"decoded_token":)");
  AppendJsonString(RepairUtf8(codec.TokenBytes(token)), out);
  out->push_back('}');
}

void AppendPromptToken(const PromptLogprob& scored, int num_top,
                       const TextCodec& codec, std::string* out) {
  out->push_back('{');
  AppendRankedToken(scored.token, scored.logprob, scored.rank, codec, out);
  const int shown = std::min<int>(num_top, scored.top.size());
  for (int i = 0; i < shown; ++i) {
    const TokenLogprob& top = scored.top[i];
    if (top.token == scored.token) continue;
    out->push_back(',');
    AppendRankedToken(top.token, top.logprob, i + 1, codec, out);
  }
  out->push_back('}');
}

// ,"finish_reason":..,"stop_reason":..
void AppendFinish(const std::optional<FinishInfo>& finish, std::string* out) {
  if (!finish) {
    out->append(R"(,"finish_reason":null,"stop_reason":null)");
    return;
  }
  out->append(R"(,"finish_reason":")");
  out->append(FinishName(finish->reason));
  out->append(R"(","stop_reason":)");
  if (!finish->stop_string.empty()) {
    AppendJsonString(finish->stop_string, out);
  } else if (finish->stop_token) {
    AppendInt(*finish->stop_token, out);
  } else {
    out->append(finish->reason == FinishReason::kAbort ? R"("abort")" : "null");
  }
}

void AppendLogprobsField(std::string_view logprobs, std::string* out) {
  out->append(R"(,"logprobs":)");
  out->append(logprobs.empty() ? "null" : logprobs);
}

void AppendUsageObject(const Usage& usage, std::string* out) {
  out->append(R"({"prompt_tokens":)");
  AppendInt(usage.prompt_tokens, out);
  out->append(R"(,"completion_tokens":)");
  AppendInt(usage.completion_tokens, out);
  out->append(R"(,"total_tokens":)");
  AppendInt(usage.prompt_tokens + usage.completion_tokens, out);
  out->push_back('}');
}

// {"id":..,"object":..,"created":..,"model":..,"choices":[
void AppendBegin(const AnswerHead& head, std::string_view object,
                 std::string* out) {
  out->append(R"({"id":)");
  AppendJsonString(head.id, out);
  out->append(R"(,"object":")");
  out->append(object);
  out->append(R"(","created":)");
  AppendInt(head.created, out);
  out->append(R"(,"model":)");
  AppendJsonString(head.model, out);
  out->append(R"(,"choices":[)");
}

// ,"prompt_token_ids":..,"prompt_logprobs":.., what of them is asked for.
void AppendOfPrompt(const ChoiceBody& choice, std::string* out) {
  if (choice.with_token_ids) {
    out->append(R"(,"prompt_token_ids":)");
    AppendIds(choice.prompt_token_ids, out);
  }
  if (!choice.prompt_logprobs.empty()) {
    out->append(R"(,"prompt_logprobs":)");
    out->append(choice.prompt_logprobs);
  }
}

void AppendModel(std::string_view model, std::string_view root,
                 int max_model_len, int64_t created, std::string* out) {
  out->append(R"({"id":)");
  AppendJsonString(RepairUtf8(model), out);
  out->append(R"(,"object":"model","created":)");
  AppendInt(created, out);
  out->append(R"(,"owned_by":"moebius","root":)");
  AppendJsonString(RepairUtf8(root), out);
  out->append(R"(,"parent":null,"max_model_len":)");
  AppendInt(max_model_len, out);
  out->push_back('}');
}

}  // namespace

void AppendCompletionLogprobs(absl::Span<const ScoredToken> tokens,
                              const TextCodec& codec, int64_t* text_offset,
                              std::string* out) {
  std::string logprobs, tops, offsets;
  out->append(R"({"tokens":[)");
  for (size_t i = 0; i < tokens.size(); ++i) {
    const ScoredToken& scored = tokens[i];
    if (i > 0) {
      for (std::string* list : {out, &logprobs, &tops, &offsets}) {
        list->push_back(',');
      }
    }
    const std::string bytes = codec.TokenBytes(scored.token);
    const std::string text = TokenText(bytes);
    AppendJsonString(text, out);
    if (scored.logprob) {
      AppendFloat(*scored.logprob, &logprobs);
      AppendTopMap(scored, text, codec, &tops);
    } else {
      logprobs.append("null");
      tops.append("null");
    }
    AppendInt(*text_offset, &offsets);
    *text_offset += CountCharacters(bytes);
  }
  out->append(R"(],"token_logprobs":[)");
  out->append(logprobs);
  out->append(R"(],"top_logprobs":[)");
  out->append(tops);
  out->append(R"(],"text_offset":[)");
  out->append(offsets);
  out->append("]}");
}

void AppendChatLogprobs(absl::Span<const ScoredToken> tokens, int num_top,
                        const TextCodec& codec, std::string* out) {
  out->append(R"({"content":[)");
  for (size_t i = 0; i < tokens.size(); ++i) {
    const ScoredToken& scored = tokens[i];
    out->append(i > 0 ? ",{" : "{");
    AppendChatToken(scored.token, scored.logprob.value_or(0.0f), codec, out);
    out->append(R"(,"top_logprobs":[)");
    const int shown = std::min<int>(num_top, scored.top.size());
    for (int j = 0; j < shown; ++j) {
      out->append(j > 0 ? ",{" : "{");
      AppendChatToken(scored.top[j].token, scored.top[j].logprob, codec, out);
      out->push_back('}');
    }
    out->append("]}");
  }
  out->append(R"(],"refusal":null})");
}

void AppendPromptLogprobs(absl::Span<const PromptLogprob> logprobs,
                          int num_tokens, int num_top, const TextCodec& codec,
                          std::string* out) {
  out->append("[null");
  size_t next = 0;
  for (int position = 1; position < num_tokens; ++position) {
    out->push_back(',');
    const bool there = next < logprobs.size() &&
                       static_cast<int>(logprobs[next].position) == position;
    if (there) {
      AppendPromptToken(logprobs[next++], num_top, codec, out);
    } else {
      out->append("null");
    }
  }
  out->push_back(']');
}

ChunkWriter::ChunkWriter(const AnswerHead& head, bool include_usage)
    : chat_(head.chat) {
  begin_ = "data: ";
  AppendBegin(head, chat_ ? "chat.completion.chunk" : "text_completion",
              &begin_);
  end_ = include_usage ? ",\"usage\":null}\n\n" : "}\n\n";
}

void ChunkWriter::Append(const ChunkEvent& event, std::string* out) const {
  out->append(begin_);
  out->append(R"({"index":)");
  AppendInt(event.index, out);
  if (chat_) {
    out->append(event.first ? R"(,"delta":{"role":"assistant","content":)"
                            : R"(,"delta":{"content":)");
    AppendJsonString(event.text, out);
    out->push_back('}');
  } else {
    out->append(R"(,"text":)");
    AppendJsonString(event.text, out);
  }
  AppendLogprobsField(event.logprobs, out);
  AppendFinish(event.finish, out);
  if (event.with_token_ids) {
    if (event.first) {
      out->append(R"(,"prompt_token_ids":)");
      AppendIds(event.prompt_token_ids, out);
    }
    out->append(R"(,"token_ids":)");
    AppendIds(event.token_ids, out);
  }
  out->append("}]");
  if (chat_ && event.first && event.with_token_ids) {
    out->append(R"(,"prompt_token_ids":)");
    AppendIds(event.prompt_token_ids, out);
  }
  if (!event.usage.has_value()) {
    out->append(end_);
    return;
  }
  out->append(R"(,"usage":)");
  AppendUsageObject(*event.usage, out);
  out->append("}\n\n");
}

void ChunkWriter::AppendUsage(const Usage& usage, std::string* out) const {
  out->append(begin_);
  out->append(R"(],"usage":)");
  AppendUsageObject(usage, out);
  out->append("}\n\n");
}

void ChunkWriter::AppendDone(std::string* out) {
  out->append("data: [DONE]\n\n");
}

std::string AnswerBody(const AnswerHead& head,
                       absl::Span<const ChoiceBody> choices,
                       const Usage& usage) {
  std::string out;
  AppendBegin(head, head.chat ? "chat.completion" : "text_completion", &out);
  for (size_t i = 0; i < choices.size(); ++i) {
    const ChoiceBody& choice = choices[i];
    out.append(i > 0 ? R"(,{"index":)" : R"({"index":)");
    AppendInt(choice.index, &out);
    if (head.chat) {
      out.append(R"(,"message":{"role":"assistant","content":)");
      AppendJsonString(choice.text, &out);
      out.append(R"(,"refusal":null})");
    } else {
      out.append(R"(,"text":)");
      AppendJsonString(choice.text, &out);
    }
    AppendLogprobsField(choice.logprobs, &out);
    AppendFinish(choice.finish, &out);
    if (!head.chat) AppendOfPrompt(choice, &out);
    if (head.chat && choice.with_token_ids) {
      out.append(R"(,"prompt_token_ids":)");
      AppendIds(choice.prompt_token_ids, &out);
    }
    if (choice.with_token_ids) {
      out.append(R"(,"token_ids":)");
      AppendIds(choice.token_ids, &out);
    }
    out.push_back('}');
  }
  out.append(R"(],"usage":)");
  AppendUsageObject(usage, &out);
  if (head.chat && !choices.empty()) AppendOfPrompt(choices[0], &out);
  out.push_back('}');
  return out;
}

std::string ModelBody(std::string_view model, std::string_view root,
                      int max_model_len, int64_t created) {
  std::string out;
  AppendModel(model, root, max_model_len, created, &out);
  return out;
}

std::string ModelsBody(std::string_view model, std::string_view root,
                       int max_model_len, int64_t created) {
  std::string out = R"({"object":"list","data":[)";
  AppendModel(model, root, max_model_len, created, &out);
  out.append("]}");
  return out;
}

std::string TokenizeBody(absl::Span<const int32_t> tokens, int max_model_len,
                         const TextCodec* with_strings) {
  std::string out = R"({"count":)";
  AppendInt(static_cast<int64_t>(tokens.size()), &out);
  out.append(R"(,"max_model_len":)");
  AppendInt(max_model_len, &out);
  out.append(R"(,"tokens":)");
  AppendIds(tokens, &out);
  out.append(R"(,"token_strs":)");
  if (with_strings == nullptr) {
    out.append("null");
  } else {
    out.push_back('[');
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) out.push_back(',');
      AppendJsonString(TokenText(with_strings->TokenBytes(tokens[i])), &out);
    }
    out.push_back(']');
  }
  out.push_back('}');
  return out;
}

std::string DetokenizeBody(std::string_view text) {
  std::string out = R"({"prompt":)";
  AppendJsonString(RepairUtf8(text), &out);
  out.push_back('}');
  return out;
}

}  // namespace moebius
