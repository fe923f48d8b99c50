"""Where models come from: the bundled one, a path, a mounted folder; `hub_downloader`: a Hugging
Face hub as well.

That one is imported where it is needed: it brings an HTTP client along that most nodes never use.
"""

from exo.download.shard_downloader import (
    DownloadProgress,
    LocalShardDownloader,
    ModelSource,
    ShardDownloader,
)

__all__ = ["DownloadProgress", "LocalShardDownloader", "ModelSource", "ShardDownloader"]
