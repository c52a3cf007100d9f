"""What is online: gRPC servicers, micro-batcher and telemetry around a Screen."""
