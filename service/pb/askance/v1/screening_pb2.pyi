import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    CLEAN: _ClassVar[Verdict]
    SUSPECT: _ClassVar[Verdict]
    ADVERSARIAL: _ClassVar[Verdict]
    UNSCREENED: _ClassVar[Verdict]
    BLOCKED: _ClassVar[Verdict]
VERDICT_UNSPECIFIED: Verdict
CLEAN: Verdict
SUSPECT: Verdict
ADVERSARIAL: Verdict
UNSCREENED: Verdict
BLOCKED: Verdict

class ScreenRequest(_message.Message):
    __slots__ = ("request_id", "encoded", "tensor", "explain")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    encoded: bytes
    tensor: Tensor
    explain: bool
    def __init__(self, request_id: _Optional[str] = ..., encoded: _Optional[bytes] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., explain: _Optional[bool] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("shape", "dtype", "data")
    class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DATA_TYPE_UNSPECIFIED: _ClassVar[Tensor.DataType]
        FP32: _ClassVar[Tensor.DataType]
        UINT8: _ClassVar[Tensor.DataType]
    DATA_TYPE_UNSPECIFIED: Tensor.DataType
    FP32: Tensor.DataType
    UINT8: Tensor.DataType
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: Tensor.DataType
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[Tensor.DataType, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ScreenResponse(_message.Message):
    __slots__ = ("request_id", "bundle_id", "prediction", "probabilities", "verdict", "p_value", "score", "detectors", "reasons")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    bundle_id: str
    prediction: Prediction
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    verdict: Verdict
    p_value: float
    score: float
    detectors: _containers.RepeatedCompositeFieldContainer[DetectorVerdict]
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    def __init__(self, request_id: _Optional[str] = ..., bundle_id: _Optional[str] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., probabilities: _Optional[_Iterable[float]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., p_value: _Optional[float] = ..., score: _Optional[float] = ..., detectors: _Optional[_Iterable[_Union[DetectorVerdict, _Mapping]]] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("name", "p_value", "flags")
    NAME_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    p_value: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., p_value: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("index", "name", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class DetectorVerdict(_message.Message):
    __slots__ = ("name", "score", "p_value", "flags", "explanation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    score: float
    p_value: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    explanation: Explanation
    def __init__(self, name: _Optional[str] = ..., score: _Optional[float] = ..., p_value: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("library_network", "introspection", "self_organizing_map", "semantic_signature", "constellation", "other")
    LIBRARY_NETWORK_FIELD_NUMBER: _ClassVar[int]
    INTROSPECTION_FIELD_NUMBER: _ClassVar[int]
    SELF_ORGANIZING_MAP_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CONSTELLATION_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    library_network: LibraryNetworkExplanation
    introspection: IntrospectionExplanation
    self_organizing_map: SelfOrganizingMapExplanation
    semantic_signature: SemanticSignatureExplanation
    constellation: ConstellationExplanation
    other: _struct_pb2.Struct
    def __init__(self, library_network: _Optional[_Union[LibraryNetworkExplanation, _Mapping]] = ..., introspection: _Optional[_Union[IntrospectionExplanation, _Mapping]] = ..., self_organizing_map: _Optional[_Union[SelfOrganizingMapExplanation, _Mapping]] = ..., semantic_signature: _Optional[_Union[SemanticSignatureExplanation, _Mapping]] = ..., constellation: _Optional[_Union[ConstellationExplanation, _Mapping]] = ..., other: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LibraryNetworkExplanation(_message.Message):
    __slots__ = ("consistency", "layers")
    class Layer(_message.Message):
        __slots__ = ("layer", "answer", "similarity")
        LAYER_FIELD_NUMBER: _ClassVar[int]
        ANSWER_FIELD_NUMBER: _ClassVar[int]
        SIMILARITY_FIELD_NUMBER: _ClassVar[int]
        layer: str
        answer: int
        similarity: float
        def __init__(self, layer: _Optional[str] = ..., answer: _Optional[int] = ..., similarity: _Optional[float] = ...) -> None: ...
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    consistency: float
    layers: _containers.RepeatedCompositeFieldContainer[LibraryNetworkExplanation.Layer]
    def __init__(self, consistency: _Optional[float] = ..., layers: _Optional[_Iterable[_Union[LibraryNetworkExplanation.Layer, _Mapping]]] = ...) -> None: ...

class IntrospectionExplanation(_message.Message):
    __slots__ = ("map_point", "estimated_error", "confidence", "log10_reconstruction_error")
    MAP_POINT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_ERROR_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    LOG10_RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    map_point: _containers.RepeatedScalarFieldContainer[float]
    estimated_error: float
    confidence: float
    log10_reconstruction_error: float
    def __init__(self, map_point: _Optional[_Iterable[float]] = ..., estimated_error: _Optional[float] = ..., confidence: _Optional[float] = ..., log10_reconstruction_error: _Optional[float] = ...) -> None: ...

class SelfOrganizingMapExplanation(_message.Message):
    __slots__ = ("layers",)
    class Layer(_message.Message):
        __slots__ = ("layer", "unit", "distance", "clean_share_farther")
        LAYER_FIELD_NUMBER: _ClassVar[int]
        UNIT_FIELD_NUMBER: _ClassVar[int]
        DISTANCE_FIELD_NUMBER: _ClassVar[int]
        CLEAN_SHARE_FARTHER_FIELD_NUMBER: _ClassVar[int]
        layer: str
        unit: _containers.RepeatedScalarFieldContainer[int]
        distance: float
        clean_share_farther: float
        def __init__(self, layer: _Optional[str] = ..., unit: _Optional[_Iterable[int]] = ..., distance: _Optional[float] = ..., clean_share_farther: _Optional[float] = ...) -> None: ...
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[SelfOrganizingMapExplanation.Layer]
    def __init__(self, layers: _Optional[_Iterable[_Union[SelfOrganizingMapExplanation.Layer, _Mapping]]] = ...) -> None: ...

class SemanticSignatureExplanation(_message.Message):
    __slots__ = ("untypicality", "layers")
    class Layer(_message.Message):
        __slots__ = ("layer", "one_versus_two", "margin")
        LAYER_FIELD_NUMBER: _ClassVar[int]
        ONE_VERSUS_TWO_FIELD_NUMBER: _ClassVar[int]
        MARGIN_FIELD_NUMBER: _ClassVar[int]
        layer: str
        one_versus_two: float
        margin: float
        def __init__(self, layer: _Optional[str] = ..., one_versus_two: _Optional[float] = ..., margin: _Optional[float] = ...) -> None: ...
    UNTYPICALITY_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    untypicality: float
    layers: _containers.RepeatedCompositeFieldContainer[SemanticSignatureExplanation.Layer]
    def __init__(self, untypicality: _Optional[float] = ..., layers: _Optional[_Iterable[_Union[SemanticSignatureExplanation.Layer, _Mapping]]] = ...) -> None: ...

class ConstellationExplanation(_message.Message):
    __slots__ = ("readings", "clean_share_above")
    class ReadingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class CleanShareAboveEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    READINGS_FIELD_NUMBER: _ClassVar[int]
    CLEAN_SHARE_ABOVE_FIELD_NUMBER: _ClassVar[int]
    readings: _containers.ScalarMap[str, float]
    clean_share_above: _containers.ScalarMap[str, float]
    def __init__(self, readings: _Optional[_Mapping[str, float]] = ..., clean_share_above: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ScreenStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: ScreenResponse
    error: ItemError
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[ScreenResponse, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "message", "verdict")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    verdict: Verdict
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("bundle_id", "created", "classifier", "class_names", "input", "layers", "detectors", "levels", "calibration_samples", "fusion_samples", "max_message_bytes", "max_image_pixels")
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIER_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FUSION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    bundle_id: str
    created: _timestamp_pb2.Timestamp
    classifier: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    input: Input
    layers: _containers.RepeatedScalarFieldContainer[str]
    detectors: _containers.RepeatedCompositeFieldContainer[DetectorDescription]
    levels: _containers.RepeatedCompositeFieldContainer[Level]
    calibration_samples: int
    fusion_samples: int
    max_message_bytes: int
    max_image_pixels: int
    def __init__(self, bundle_id: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., classifier: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., layers: _Optional[_Iterable[str]] = ..., detectors: _Optional[_Iterable[_Union[DetectorDescription, _Mapping]]] = ..., levels: _Optional[_Iterable[_Union[Level, _Mapping]]] = ..., calibration_samples: _Optional[int] = ..., fusion_samples: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("channels", "height", "width", "mean", "std", "resize")
    class Resize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESIZE_UNSPECIFIED: _ClassVar[Input.Resize]
        REFUSE: _ClassVar[Input.Resize]
        BILINEAR: _ClassVar[Input.Resize]
    RESIZE_UNSPECIFIED: Input.Resize
    REFUSE: Input.Resize
    BILINEAR: Input.Resize
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    channels: int
    height: int
    width: int
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    resize: Input.Resize
    def __init__(self, channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., resize: _Optional[_Union[Input.Resize, str]] = ...) -> None: ...

class DetectorDescription(_message.Message):
    __slots__ = ("name", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., layers: _Optional[_Iterable[str]] = ...) -> None: ...

class Level(_message.Message):
    __slots__ = ("name", "false_positive_rate")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    false_positive_rate: float
    def __init__(self, name: _Optional[str] = ..., false_positive_rate: _Optional[float] = ...) -> None: ...
