"""What Vertex AI accepts: requests checked as it checks them, and its bodies as it writes them."""
