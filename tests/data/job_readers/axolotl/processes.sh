#!/bin/bash
axolotl preprocess qlora.yml
axolotl train qlora.yml --num-processes 4 --main-process-port 29501
