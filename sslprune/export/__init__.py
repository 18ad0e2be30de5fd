"""Export: files that need neither the model's class nor sslprune."""
