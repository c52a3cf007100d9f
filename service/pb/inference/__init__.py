"""Generated from proto/ (`make protos`); do not edit."""
