#!/bin/bash
# Run experiments at different scales

for count in 100 500 1000 5000 10000; do
  echo "=========================================="
  echo "Testing with $count dummy services"
  echo "=========================================="
  
  # Create services
  cd scripts/create-dummy-services
  go run main.go -count $count
  
  # Wait for kube-proxy sync
  sleep 120
  
  # Run eBPF experiment
  cd ../..
  sudo bash scripts/ebpf/run-experiment.sh 30 10000
  
  # Parse results
  LOG_FILE=$(ls -t logs/ebpf/*.log | head -1)
  AVG_LATENCY=$(grep "Avg latency:" $LOG_FILE | awk '{print $3}')
  echo "Result: $count services → $AVG_LATENCY µs"
  
  # Cleanup
  cd scripts/delete-dummy-services
  go run main.go
  sleep 60
done
