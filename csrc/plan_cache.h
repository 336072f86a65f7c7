// A bounded cache of plans, shared by all threads. It does not know what a plan is, nor CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace affnet {

struct PlanCacheInfo {
  size_t size, capacity, pinned;
  int64_t hits, misses, evictions;
};

// Keeps the most recently used plans. A plan that is evicted lives on while someone holds it. A pinned plan is never
// evicted: a captured CUDA graph keeps reading a plan's tables, and nothing tells when the graph is gone. Pinned plans
// count towards the size, so they displace others.
template <typename Key, typename Plan>
class PlanCache {
 public:
  explicit PlanCache(size_t capacity) : capacity_(capacity) {}

  // The plan of `key`, made by `make(key)` if there is none. Other threads wait meanwhile, so no plan is made twice.
  template <typename Make>
  std::shared_ptr<Plan> get(const Key& key, const Make& make, bool pin = false) {
    const std::lock_guard lock(mutex_);
    const auto found = index_.find(key);
    if (found != index_.end()) {
      ++hits_;
      entries_.splice(entries_.begin(), entries_, found->second);
    } else {
      std::shared_ptr<Plan> plan = make(key);  // may throw: nothing has changed yet
      ++misses_;
      entries_.push_front({key, std::move(plan), false});
      index_.emplace(key, entries_.begin());
    }
    entries_.front().pinned |= pin;
    const std::shared_ptr<Plan> plan = entries_.front().plan;
    shrink();
    return plan;
  }

  void set_capacity(size_t capacity) {
    const std::lock_guard lock(mutex_);
    capacity_ = capacity;
    shrink();
  }

  // Drops every plan that is not pinned.
  void clear() {
    const std::lock_guard lock(mutex_);
    const size_t capacity = std::exchange(capacity_, 0);
    const int64_t evictions = evictions_;
    shrink();
    capacity_ = capacity;
    evictions_ = evictions;
  }

  PlanCacheInfo info() const {
    const std::lock_guard lock(mutex_);
    size_t pinned = 0;
    for (const Entry& entry : entries_) pinned += entry.pinned;
    return {entries_.size(), capacity_, pinned, hits_, misses_, evictions_};
  }

 private:
  struct Entry {
    Key key;
    std::shared_ptr<Plan> plan;
    bool pinned;
  };

  void shrink() {
    for (auto entry = entries_.end(); entries_.size() > capacity_ && entry != entries_.begin();) {
      --entry;
      if (entry->pinned) continue;
      index_.erase(entry->key);
      entry = entries_.erase(entry);
      ++evictions_;
    }
  }

  mutable std::mutex mutex_;
  size_t capacity_;
  std::list<Entry> entries_;  // most recently used first
  std::map<Key, typename std::list<Entry>::iterator> index_;
  int64_t hits_ = 0, misses_ = 0, evictions_ = 0;
};

}  // namespace affnet
