"""Rendered pedestrians: a synthetic camera network for demonstrations, tests, training and benchmarks.

appearance   who: body, clothes, hair, bag, gait     body, figure, clothing   skeleton, surface, texture
camera       how one camera sees                     scene, surfaces, props   the place it watches
actors, raster, mesh   people in one frame           clip, full_frame, network   what is rendered and written
"""

from pipeline.rendering.appearance import Appearance, sample_appearance
from pipeline.rendering.camera import CameraLook, sample_camera_look
from pipeline.rendering.clip import HIDDEN_BELOW, Clip, render_clip
from pipeline.rendering.full_frame import FullFrame, render_full_frame
from pipeline.rendering.network import render_network

__all__ = [
    "HIDDEN_BELOW",
    "Appearance",
    "CameraLook",
    "Clip",
    "FullFrame",
    "render_clip",
    "render_full_frame",
    "render_network",
    "sample_appearance",
    "sample_camera_look",
]
