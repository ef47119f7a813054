"""A small backbone taught by a larger one: OSNet from an ONNX teacher's inner maps, layer by layer.

The way of the data: people (frames of candidate videos) -> frame_augmentation and pool (the images that are learned from) ->
teacher (what it makes of an image) -> hints (the losses) -> loop (two phases) -> `pipeline.backbone.export` (an ONNX backbone).
"""
