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

}  // namespace moebius
