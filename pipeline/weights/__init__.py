"""The weights that ship with the package.

backbones/<name>.onnx with its sidecar <name>.json and, for one trained here, its tensors <name>.safetensors; heads/<backbone>/
with a co-attention head and what belongs to it. A head is found by the backbone that it names, never by its folder.
"""
