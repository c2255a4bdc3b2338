"""The stack of layers behind LSTM, GRU and RNN. Nothing here is public but by way of these classes."""
