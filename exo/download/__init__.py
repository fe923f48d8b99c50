"""Where models come from: the bundled one, a path, a mounted folder; with `hub_downloader` also a
Hugging Face hub.

That module is imported only where it is needed, because of an HTTP client that most nodes never
use.
"""

from exo.download.shard_downloader import (
    DownloadProgress,
    LocalShardDownloader,
    ModelSource,
    ShardDownloader,
)

__all__ = ["DownloadProgress", "LocalShardDownloader", "ModelSource", "ShardDownloader"]
