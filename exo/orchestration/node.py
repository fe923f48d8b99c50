"""Former path of `exo.node.node`, kept for code outside."""

from exo.node.node import Node as Node
