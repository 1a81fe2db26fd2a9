"""Text, images and videos to model inputs, for programs that load this checkpoint without moonflow.

transformers, vLLM and SGLang copy this file and those it names out of a checkpoint folder and run them alone
(``trust_remote_code``), so they import nothing else of ours. It computes what ``model/codec/image.py`` and
``model/codec/video.py`` compute; moonflow's tests check that the results are equal.

Media are dictionaries, as engines pass them: {"type": "image", "image": I}, {"type": "video_chunk", "video_chunk": [I]}
with at most four frames, or {"type": "video", "video": MP4 bytes}. An image I is a PIL image, encoded bytes, or uint8
[H, W, 3].
"""

import math
import re

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .image_files import image_size, read_image
from .video_files import read_video

PAD = "<|media_pad|>"
VIDEO = "<|kimi_k25_video_placeholder|>"


def encoded(image):
    """The image as ``image_files`` takes it: bytes or a PIL image."""
    # vLLM keeps the encoded bytes next to the image that it decoded. From the bytes we get the pixels of training.
    image = getattr(image, "original_bytes", image)
    image = getattr(image, "media", image)
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    if not isinstance(image, (bytes, Image.Image)):
        raise ValueError(f"an image is a PIL image, bytes or a uint8 array, not {type(image).__name__}")
    return image


def timestamp(seconds):
    """HH:MM:SS.mmm; milliseconds are cut off, not rounded, as in the released processor."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{int(seconds % 1 * 1000):03d}"


class KimiK25VisionProcessor(BaseImageProcessor):
    """Images and video chunks to patches [P, 3, patch, patch] and one grid (t, h, w) for each medium."""

    model_input_names = ["pixel_values", "grid_thws"]

    def __init__(self, media_proc_cfg, **kwargs):
        super().__init__(**kwargs)
        self.media_proc_cfg = dict(media_proc_cfg)
        self.num_frames_per_chunk = media_proc_cfg["temporal_merge_kernel_size"]

    @staticmethod
    def _frames(media):
        kind = media.get("type")
        if kind == "image":
            return [encoded(media["image"])]
        if kind == "video_chunk":
            return [encoded(frame) for frame in media["video_chunk"]]
        raise ValueError(f"a medium is an image or a video_chunk, not {kind!r}")

    def _sizes(self, media, frames):
        """(width, height) to shrink to, and after padding to whole merged patches."""
        config = self.media_proc_cfg
        limit = config["in_patch_limit"]
        if media["type"] == "video_chunk":
            limit = config["in_patch_limit_each_frame"]
            if config["in_patch_limit_video"] is not None:
                limit = min(limit, round(config["in_patch_limit_video"] / len(frames)))
        width, height = image_size(frames[0])
        patch, side = config["patch_size"], config["patch_limit_on_one_side"] * config["patch_size"]
        area = math.sqrt(limit / (max(1, width // patch) * max(1, height // patch)))
        scale = min(1.0, area, side / width, side / height)
        size = tuple(min(side, max(1, int(length * scale))) for length in (width, height))
        whole = patch * config["merge_kernel_size"]
        return size, tuple(-(-length // whole) * whole for length in size)

    def media_tokens_calculator(self, media):
        """Decoder tokens of a medium, from its header alone."""
        padded = self._sizes(media, self._frames(media))[1]
        whole = self.media_proc_cfg["patch_size"] * self.media_proc_cfg["merge_kernel_size"]
        return (padded[0] // whole) * (padded[1] // whole)

    def preprocess(self, medias, return_tensors=None, do_rescale=True, do_normalize=True, **kwargs):
        """``pixel_values`` float32 [P, 3, patch, patch] and ``grid_thws`` int64 [number of media, 3]."""
        config, p = self.media_proc_cfg, self.media_proc_cfg["patch_size"]
        mean, std = (np.array(config[key], np.float32) for key in ("image_mean", "image_std"))
        patches, grids = [], []
        for media in medias if isinstance(medias, (list, tuple)) else [medias]:
            frames = self._frames(media)
            size, padded = self._sizes(media, frames)
            pixels = np.zeros((len(frames), padded[1], padded[0], 3), np.float32)
            for number, frame in enumerate(map(read_image, frames)):
                shrunk = frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC)
                pixels[number, : size[1], : size[0]] = np.asarray(shrunk)
            if do_rescale:
                pixels /= np.float32(255)
            if do_normalize:
                pixels = (pixels - mean) / std
            t, h, w = len(frames), padded[1] // p, padded[0] // p
            cut = pixels.reshape(t, h, p, w, p, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, p, p)
            patches.append(torch.from_numpy(np.ascontiguousarray(cut)))
            grids.append((t, h, w))
        data = {"pixel_values": torch.cat(patches), "grid_thws": torch.tensor(grids)} if grids else {}
        return BatchFeature(data, tensor_type=return_tensors)

    @staticmethod
    def make_chunk_prompt(timestamp_text):
        return f"{timestamp_text}<|media_begin|>video<|media_content|>{PAD}<|media_end|>"

    def split_video_chunks(self, video):
        """Encoded bytes -> chunks, each with the ``prompt`` that stands for it in the text. Needs PyAV (package av)."""
        config = self.media_proc_cfg
        frames, seconds = read_video(video, config["sample_fps"], config["max_num_frames_each_video"])
        step = self.num_frames_per_chunk
        return [
            {
                "type": "video_chunk",
                "video_chunk": [Image.fromarray(frame) for frame in frames[start : start + step]],
                "prompt": self.make_chunk_prompt(timestamp(seconds[start])),
            }
            for start in range(0, len(seconds), step)
        ]


class KimiK25Processor(ProcessorMixin):
    """Tokens and pixels of a rendered conversation."""

    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.media_processor = image_processor  # the released name, which SGLang uses
        self.video_placeholder = VIDEO
        self.image_token = PAD
        self.image_token_id = tokenizer.convert_tokens_to_ids(PAD)

    def __call__(self, text=None, medias=None, images=None, return_tensors="pt", **kwargs):
        """``input_ids``, ``attention_mask``, ``pixel_values`` and ``grid_thws``.

        Args:
            text: a rendered conversation, or a list of them. Each medium has one pad, which is repeated once per token
                of the medium (a text whose pads are already expanded stays as it is); each video has one placeholder.
            medias: the media of all texts, in reading order.
            images: images only, instead of ``medias``; may be nested, one list per text.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        if medias is None:
            flat = [one for each in images or () for one in (each if isinstance(each, (list, tuple)) else [each])]
            medias = [{"type": "image", "image": image} for image in flat]
        texts, medias = self._with_chunks(texts, list(medias))
        data = self.image_processor.preprocess(medias) if medias else {}
        if texts:
            texts = self._expanded(texts, [self.image_processor.media_tokens_calculator(media) for media in medias])
            padded = {
                "padding": len(texts) > 1,
                **{k: v for k, v in kwargs.items() if k in ("padding", "padding_side")},
            }
            data = {**self.tokenizer(texts, add_special_tokens=False, **padded), **data}
        return BatchFeature(dict(data), tensor_type=return_tensors)

    def _with_chunks(self, texts, medias):
        """The texts and media with each video replaced by its chunks."""
        if not any(media["type"] == "video" for media in medias):
            return texts, medias
        waiting = iter(medias)
        chunked: list = []
        written = []
        for text in texts:
            parts = re.split(f"({re.escape(PAD)}|{re.escape(VIDEO)})", text)
            for place, part in enumerate(parts):
                if part not in (PAD, VIDEO):
                    continue
                media = next(waiting, None)
                if media is None or (part == VIDEO) != (media["type"] == "video"):
                    raise ValueError("the text's pads and video placeholders do not match the media in their order")
                chunks = self.image_processor.split_video_chunks(media["video"]) if part == VIDEO else [media]
                if part == VIDEO:
                    parts[place] = "".join(chunk["prompt"] for chunk in chunks)
                chunked += chunks
            written.append("".join(parts))
        return written, chunked

    @staticmethod
    def _expanded(texts, counts):
        pads = sum(text.count(PAD) for text in texts)
        if pads == sum(counts):
            return texts
        if pads != len(counts):
            raise ValueError(f"the text has {pads} {PAD} for {len(counts)} media")
        waiting = iter(counts)
        return [re.sub(re.escape(PAD), lambda _: PAD * next(waiting), text) for text in texts]
