"""Which containers and codecs are read, and what is known of each."""

import re
from typing import Any

import av

# What FFmpeg may take a file for: containers and streams of moving pictures. Neither playlists, which lead to other files, nor
# pictures and texts, which it would draw as videos, nor devices and networks.
RAW_STREAMS = frozenset(
    {
        *("av1", "avs2", "avs3", "cavsvideo", "evc", "h261", "h263", "h264", "hevc", "ingenient", "m4v", "mjpeg", "mjpeg_2000"),
        *("mpegvideo", "obu", "vc1", "vvc"),
    }
)
DEMUXERS = RAW_STREAMS | {
    *("asf", "asf_o", "avi", "dhav", "dv", "flv", "gxf", "hxvs", "ifv", "ivf", "kux", "live_flv", "lmlm4", "matroska", "mov"),
    *("mpeg", "mpegts", "mpjpeg", "mxf", "nsv", "nut", "nuv", "ogg", "pva", "rm", "ty", "vc1test", "webm", "wtv", "yuv4mpegpipe"),
}
# Titles and the like that are not UTF-8 are no reason to refuse a file; from PyAV 19 on they never are.
UNREADABLE_TEXT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}
# Containers that write when a frame is decoded, not shown; FFmpeg takes that for the time of showing, in the wrong order with B
# frames. When each decoded frame came out is in order.
DECODING_TIMES = frozenset({"asf", "asf_o", "avi", "mxf"})
# How files begin that are videos but may not open: only to tell a damaged video from something else.
LIKE_A_VIDEO = re.compile(
    rb"(?!<!)(.{4}(ftyp|moov|mdat|wide|free|skip|pnot|uuid|styp)|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV|OggS|DKIF|YUV4MPEG2|DHAV|DAHUA"
    rb"|IMKH|\x06\x0e\x2b\x34|\x30\x26\xb2\x75|\x47.{187}\x47|.{4}\x47.{191}\x47|\x00\x00\x01[\xba\xb3]|\x00\x00\x00?\x01)",
    re.DOTALL,
)
