"""Files with weights: GGUF and safetensors, read tensor by tensor. Knows no engine."""
