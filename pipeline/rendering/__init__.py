"""Rendered pedestrians: a synthetic camera network for demonstrations, tests, training and benchmarks.

appearance   who: body, clothes, hair, bag, gait     body, figure, clothing   skeleton, surface, texture
camera       how one camera sees                     scene, surfaces, props   the place it watches
actors, raster, mesh   people in one frame           clip, full_frame, network   what is rendered and written
"""
