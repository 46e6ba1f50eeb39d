"""The same repository, command line and requests on both servers, as users of Triton have them."""
