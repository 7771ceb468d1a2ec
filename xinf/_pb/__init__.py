"""Code generated from protos/ by `make proto`; never edited. Holds no logic of xinf."""

__all__ = ["engine_service_pb2", "engine_service_pb2_grpc", "meta_service_pb2", "meta_service_pb2_grpc"]
