"""What the daemon calls back for: the session's gRPC server and the services on it."""
