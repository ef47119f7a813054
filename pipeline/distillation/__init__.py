"""A small backbone taught by larger or foreign ones: OSNet from an ONNX teacher's inner maps, layer by layer.

The way of the data: people (frames of candidate videos) -> frame_augmentation and pool (the images that are learned from) ->
teachers (what they make of an image) -> hints (the losses) -> loop (two phases) -> `pipeline.backbone.export` (an ONNX backbone).
"""
