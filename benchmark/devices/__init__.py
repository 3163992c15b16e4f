"""What is measured on, one module per device kind."""
