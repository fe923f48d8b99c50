"""Where models come from: the bundled one, a path, a mounted folder, a Hugging Face hub."""

from exo.download.shard_downloader import LocalShardDownloader, ModelSource, ShardDownloader

__all__ = ["LocalShardDownloader", "ModelSource", "ShardDownloader"]
