package main

import (
	"encoding/json"
	"os"
	"strconv"

	gguf "github.com/gpustack/gguf-parser-go"
)

// Prints, for each file, what gguf-parser-go expects on one GPU that holds all layers.
func main() {
	context, _ := strconv.Atoi(os.Args[1])
	out := map[string]any{}
	for _, path := range os.Args[2:] {
		f, err := gguf.ParseGGUFFile(path)
		if err != nil {
			out[path] = err.Error()
			continue
		}
		e := f.EstimateLLaMACppRun(
			gguf.WithLLaMACppContextSize(int32(context)),
			gguf.WithFlashAttention(),
			gguf.WithLLaMACppLogicalBatchSize(512),
			gguf.WithLLaMACppPhysicalBatchSize(512),
		)
		g := e.Devices[1]
		out[path] = map[string]any{
			"architecture": e.Architecture,
			"weights":      uint64(g.Weight.Compute + g.Weight.Output + g.Weight.Input),
			"kv":           uint64(g.KVCache.Key + g.KVCache.Value),
			"buffers":      uint64(g.Computation.Input + g.Computation.Compute + g.Computation.Output + g.Computation.Footprint + g.Footprint),
		}
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
