// What families call the tensors of embedding, attention and norms alike.
#pragma once

#include <string>

#include "worker/model/tensor_names.h"

namespace moebius {

// "model.layers.LAYER.TENSOR"
std::string NameInLayer(int layer, const char* tensor);

// The name of a tensor that is of no MLP, as Llama and those after it spell it
// (transformers, LlamaForCausalLM). REQUIRES: the role is such a one.
std::string DenseTensorName(TensorRole role, int layer);

// The same, and the MLPs' as Qwen and those after it spell them. REQUIRES: the
// role is no bias of an expert and of no expert that rows share.
std::string QwenTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
