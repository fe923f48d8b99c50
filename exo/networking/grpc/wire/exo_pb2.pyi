# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "challenge", "proof", "welcome", "heartbeat", "refused", "open", "forward", "token", "close", "failed", "bundle")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    challenge: Challenge
    proof: Proof
    welcome: Welcome
    heartbeat: Heartbeat
    refused: Refused
    open: Open
    forward: Forward
    token: Token
    close: Close
    failed: Failed
    bundle: Bundle
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., bundle: _Optional[_Union[Bundle, _Mapping]] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, frames: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("cluster", "protocol", "offer", "nonce")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    protocol: int
    offer: Offer
    nonce: bytes
    def __init__(self, cluster: _Optional[str] = ..., protocol: _Optional[int] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce", "proof", "node_id")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    node_id: str
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., node_id: _Optional[str] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("reason", "offer")
    REASON_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    reason: str
    offer: Offer
    def __init__(self, reason: _Optional[str] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("number", "offer")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    number: int
    offer: Offer
    def __init__(self, number: _Optional[int] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("sequence_id", "epoch", "code", "reason")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    code: str
    reason: str
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("node_id", "incarnation", "address", "grpc_port", "api_port", "memory_mib", "cores", "state", "model_id", "model_hash", "epoch", "engine", "peers", "slow", "pinned", "stuck", "pass_ms", "queued")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    API_PORT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    STUCK_FIELD_NUMBER: _ClassVar[int]
    PASS_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    address: str
    grpc_port: int
    api_port: int
    memory_mib: int
    cores: int
    state: str
    model_id: str
    model_hash: str
    epoch: str
    engine: str
    peers: _containers.RepeatedScalarFieldContainer[str]
    slow: _containers.RepeatedScalarFieldContainer[str]
    pinned: LayerRange
    stuck: str
    pass_ms: int
    queued: bool
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., address: _Optional[str] = ..., grpc_port: _Optional[int] = ..., api_port: _Optional[int] = ..., memory_mib: _Optional[int] = ..., cores: _Optional[int] = ..., state: _Optional[str] = ..., model_id: _Optional[str] = ..., model_hash: _Optional[str] = ..., epoch: _Optional[str] = ..., engine: _Optional[str] = ..., peers: _Optional[_Iterable[str]] = ..., slow: _Optional[_Iterable[str]] = ..., pinned: _Optional[_Union[LayerRange, _Mapping]] = ..., stuck: _Optional[str] = ..., pass_ms: _Optional[int] = ..., queued: _Optional[bool] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("sequence_id", "epoch", "entry", "tokens", "prompt_length", "params_json", "max_length", "request_id")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    entry: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    prompt_length: int
    params_json: str
    max_length: int
    request_id: str
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ..., entry: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., prompt_length: _Optional[int] = ..., params_json: _Optional[str] = ..., max_length: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("sequence_id", "epoch", "position", "dtype", "shape", "values", "sample")
    class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DTYPE_UNSPECIFIED: _ClassVar[Forward.Dtype]
        FLOAT32: _ClassVar[Forward.Dtype]
        INT64: _ClassVar[Forward.Dtype]
    DTYPE_UNSPECIFIED: Forward.Dtype
    FLOAT32: Forward.Dtype
    INT64: Forward.Dtype
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    position: int
    dtype: Forward.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    sample: bool
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ..., position: _Optional[int] = ..., dtype: _Optional[_Union[Forward.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ..., sample: _Optional[bool] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("sequence_id", "epoch", "position", "token", "logprob", "top_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    position: int
    token: int
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ..., position: _Optional[int] = ..., token: _Optional[int] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("sequence_id", "epoch")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("sequence_id", "epoch", "node", "reason", "retryable")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: str
    epoch: str
    node: str
    reason: str
    retryable: bool
    def __init__(self, sequence_id: _Optional[str] = ..., epoch: _Optional[str] = ..., node: _Optional[str] = ..., reason: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...
